"""The engine in plain Python and SimPy, one event per iteration: slow, to be read, the oracle of the compiled one."""
