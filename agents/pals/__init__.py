"""PALS: power caps and batch limits chosen together, from tables made offline and feedback online.

Hankendi, Shahout, Yu and Coskun, "PALS: Power-Aware LLM Serving for Mixture-of-Experts Models", arXiv 2605.21427 (2026):
profiling (section 3.1) is ``sweep`` and ``recorded``, the prediction model (3.2) ``table``, the choice of
configurations (3.3, algorithm 1) ``allocation``, the feedback (3.3) ``feedback``, and the runtime ``controller``.
"""
