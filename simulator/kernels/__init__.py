"""The compiled part: named tuples of arrays and njit functions, nothing else."""
