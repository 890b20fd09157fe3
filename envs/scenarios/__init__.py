"""envs/scenarios."""
