"""What GPUs were set to before the keeper changed them, on disk, so that a keeper that was killed can still restore."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ...errors import InputError
from ...files import whole

VERSION = 1


@dataclass(frozen=True)
class Original:
    """One GPU before the keeper changed it.

    Attributes:
        limit_w: Its power limit, watts.
        clock_locked: Whether the keeper has bounded its clock since. NVML does not tell whether it was bounded before,
            so going back means setting it free.
    """

    limit_w: float
    clock_locked: bool = False


def save(path: Path, originals: Mapping[str, Original]) -> None:
    """Writes them, by UUID, whole and down to the disk; takes the file away when there is nothing to go back to."""
    if not originals:
        path.unlink(missing_ok=True)
        return
    text = json.dumps({"version": VERSION, "gpus": {uuid: asdict(original) for uuid, original in originals.items()}})
    with whole(path) as partial:
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def load(path: Path) -> dict[str, Original]:
    """What an earlier keeper left, by UUID; nothing if it restored everything.

    Raises:
        InputError: The file is not one that a keeper wrote.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']}")
        return {str(uuid): _original(**fields) for uuid, fields in data["gpus"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        remedy = "Look what the limits should be (`nvidia-smi -q -d POWER`), set them, and remove the file"
        raise InputError(str(path), f"is not what a keeper leaves behind ({fault})", remedy) from fault


def _original(limit_w: float, clock_locked: bool) -> Original:
    if not math.isfinite(limit_w) or limit_w <= 0:
        raise ValueError(f"a limit of {limit_w} W")
    return Original(float(limit_w), bool(clock_locked))
