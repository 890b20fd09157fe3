"""The verb `llmcluster bench`: how fast the engine is, how its cost grows, and a whole day of a large cluster."""
