"""Train, tune, evaluate, simulate, report; the verbs of the command line."""
