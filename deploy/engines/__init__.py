"""Inference servers: their metrics, their sleep, and what starts and stops them."""
