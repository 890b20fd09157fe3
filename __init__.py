"""llmcluster: a Gymnasium environment over a simulator of a multi-GPU LLM-serving cluster."""
