"""GPUs through NVML: readings and power limits."""
