"""The sources by name, as string entry points, so that help is quick."""

from __future__ import annotations

SOURCES: dict[str, str] = {
    "nlr-online": "nlr_online:NlrOnline",
    "nlr-rate": "nlr_rate:NlrRate",
    "nlr-offline": "nlr_offline:NlrOffline",
}
"""``module:Class`` within ``sources``, by the name on the command line."""
