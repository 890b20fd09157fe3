"""What a deployment looks like right now, without touching it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .deployable import checked_config
from .keeper.client import KeeperClient
from .readings import ReadingError
from .sampler import Held, Look
from .stack import gateway_client, opened_gpus, sampler_of


class _NoGpus:
    """In place of GPUs that cannot be opened: says why."""

    def __init__(self, why: str) -> None:
        self._why = why

    def read(self) -> dict[str, Any]:
        raise ReadingError(self._why)


def status_of(path: Path) -> dict[str, Any]:
    """GPUs, servers, gateway and keeper, each as it is or with what is wrong with it, as plain values.

    Raises:
        InputError: The configuration does not hold.
    """
    config = checked_config(path)
    with ExitStack() as stack:
        gpus: Any
        try:
            gpus = stack.enter_context(opened_gpus(config))
        except ReadingError as fault:
            gpus = _NoGpus(str(fault))
        look = sampler_of(config, gpus, gateway_client(config)).look()
    found = _plain(look)
    found["slots"] = {
        slot.name: {"gpus": list(slot.gpus), "url": slot.url, "model": slot.model} for slot in config.slots
    }
    try:
        with KeeperClient(config.keeper.socket, control=False) as keeper:
            status = keeper.status()
        held = {"holder": status.holder, "lease_s": status.lease_s}
        found["keeper"] = {"fault": "", **held, "gpus": [asdict(gpu) for gpu in status.gpus]}
    except ReadingError as fault:
        found["keeper"] = {"fault": str(fault)}
    found["sound"] = not any(
        part["fault"]
        for part in (*found["gpus"].values(), *found["engines"].values(), found["gateway"], found["keeper"])
    )
    return found


def restore(path: Path) -> list[dict[str, Any]]:
    """Lets the keeper set every limit back to what it was; gives the GPUs as they are then.

    Raises:
        InputError: The configuration does not hold.
        ReadingError: There is no keeper, somebody else holds its lease, or a GPU does not go back.
    """
    with KeeperClient(checked_config(path).keeper.socket) as keeper:
        keeper.restore()
        return [asdict(gpu) for gpu in keeper.status().gpus]


def _plain(look: Look) -> dict[str, Any]:
    return {
        "gpus": {name: _told(held) for name, held in look.gpus.items()},
        "engines": {slot: _told(held) for slot, held in look.engines.items()},
        "gateway": _told(look.gateway),
    }


def _told(held: Held[Any]) -> dict[str, Any]:
    if held.reading is None:
        return {"fault": held.fault}
    reading = {k: sorted(v) if isinstance(v, frozenset) else v for k, v in asdict(held.reading).items()}
    return {"fault": held.fault, **reading}
