"""The same agents on real GPUs: telemetry, limits, a gateway, a control loop, and a rehearsal without hardware."""
