"""TAPAS (Stojkovic et al., ASPLOS 2025): placement, routing and reconfiguration by predicted heat and power."""
