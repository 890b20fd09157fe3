"""The verb `llmcluster bench`: how fast engine and environment are, how cost grows, and a day of a large cluster."""
