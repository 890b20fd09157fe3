"""Suites by name: ``module:function``, loaded when asked for."""

from __future__ import annotations

SUITES: dict[str, str] = {
    "tapas": "tapas:run",
    "offline-optimal": "offline_optimal:run",
}
"""Add your own here; see :class:`~llmcluster.experiments.suites.suite.SuiteResult`."""
