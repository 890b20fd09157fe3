"""Suites by name: ``module:function``, loaded when asked for."""

from __future__ import annotations

SUITES: dict[str, str] = {
<<<<<<< HEAD
    "tapas": "tapas:run",
=======
    "offline-optimal": "offline_optimal:run",
>>>>>>> main
}
"""Add your own here; see :class:`~llmcluster.experiments.suites.suite.SuiteResult`."""
