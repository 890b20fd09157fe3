"""PALS: power caps and batch limits chosen together, from tables made offline and feedback online.

The paper is Hankendi, Shahout, Yu and Coskun, "PALS: Power-Aware LLM Serving for Mixture-of-Experts Models", arXiv
2605.21427 (2026): its profiling (section 3.1) is ``sweep`` and ``recorded``, its prediction model (3.2) ``table``, its
choice of configurations (3.3, algorithm 1) ``allocation``, its feedback (3.3) ``feedback``, and its runtime
``controller``.
"""
