"""The sources by name, as string entry points, so that help is quick."""

from __future__ import annotations

SOURCES: dict[str, str] = {
    "caps": "caps:Caps",
    "power-trace": "power_trace:PowerTrace",
}
"""``module:Class`` within ``sources``, by the name on the command line."""
