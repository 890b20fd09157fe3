"""The inference server of a slot, as it is read and as it is acted on."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import urlsplit

from .config import DeployConfig, SlotConfig
from .engines.launcher import Launcher, Place
from .engines.server import VllmServer
from .engines.vllm import VllmSource
from .readings import EngineSource

PORTS = {"http": 80, "https": 443}


def engine_of(slot: SlotConfig, config: DeployConfig, clock: Callable[[], float] = time.monotonic) -> EngineSource:
    """Reads the server of a slot."""
    return VllmSource(slot.url, config.telemetry.timeout_s, clock)


def server_of(slot: SlotConfig, config: DeployConfig, sleep_level: int) -> VllmServer:
    """Acts on the server of a slot.

    Args:
        slot: The slot.
        config: The configuration.
        sleep_level: What of it stays in memory while it sleeps, as vLLM counts.
    """
    spec, parts = config.launcher, urlsplit(slot.url)
    place = Place(slot.name, slot.gpus, parts.port or PORTS[parts.scheme])
    launcher = Launcher(spec.load, spec.stop, dry=spec.dry, timeout_s=spec.timeout_s) if spec.load else None
    return VllmServer(slot.url, launcher, place, sleep_level)
