"""Published systems tried here: one module a suite, and what its claims came to."""
