"""The cluster: workload, engine, power, heat, topology and metrics. Knows nothing of RL."""
