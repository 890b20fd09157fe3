"""The sources by name, as string entry points, so that help is quick."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from ...simulator.errors import InputError
from .source import Source

SOURCES: dict[str, str] = {
    "mlenergy": "mlenergy:MlEnergy",
    "splitwise": "splitwise:Splitwise",
    "energy-inference": "energy_inference:EnergyInference",
    "caps": "caps:Caps",
    "power-trace": "power_trace:PowerTrace",
    "nlr-offline": "nlr_offline:NlrOffline",
    "nlr-online": "nlr_online:NlrOnline",
    "nlr-rate": "nlr_rate:NlrRate",
}
"""``module:Class`` within ``sources``, by the name on the command line."""


def load(name: str) -> Source:
    """The source of that name.

    Raises:
        InputError: No such source; the message lists the known ones.
    """
    if name not in SOURCES:
        raise InputError("source", f"unknown name {name!r}", f"Known: {', '.join(SOURCES)}")
    module, _, kind = SOURCES[name].partition(":")
    return cast(Source, getattr(import_module(f".sources.{module}", __package__), kind)())
