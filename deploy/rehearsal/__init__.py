"""The whole of it without a GPU: an emulated NVML and emulated servers, fed by the simulator."""
