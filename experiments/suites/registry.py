"""Suites by name: ``module:function`` within this package, loaded when asked for."""

from __future__ import annotations

SUITES: dict[str, str] = {
    "offline-optimal": "offline_optimal:run",
    "pals": "pals:run",
}
"""Add your own here; see :class:`~llmcluster.experiments.suites.suite.SuiteResult`."""
