"""Suites by name: ``module:function``, loaded when asked for; a module without a dot is one of this package."""

from __future__ import annotations

SUITES: dict[str, str] = {
    "offline-optimal": "offline_optimal:run",
    "pals": "pals:run",
}
"""Add your own here; see :class:`~llmcluster.experiments.suites.suite.SuiteResult`."""
