"""What client and keeper say to one another: JSON, one object a line.

A request has an ``id``, an ``op`` and the fields of that operation; its reply has the same ``id`` and either ``ok``
true with what was asked for, or ``ok`` false with the name of the error, where it is, and what is wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import DeployError, by_name
from .errors import MalformedError

LONGEST_LINE = 4096
LONGEST_REPLY = 1 << 20
LONGEST_NAME = 128

# Operations and their fields; `None` is a value of those that end in a question mark.
OPERATIONS: dict[str, tuple[str, ...]] = {
    "status": (),
    "take": (),
    "beat": (),
    "restore": (),
    "set_power_limit": ("gpu", "watts"),
    "lock_clock": ("gpu", "highest_mhz?"),
}


@dataclass(frozen=True)
class Request:
    """One request that is well formed; whether the GPU exists is not known here.

    Attributes:
        id: What the reply refers to.
        op: One of `OPERATIONS`.
        gpu: Index, UUID or product name, where the operation has one.
        value: Watts or megahertz, positive and finite; `None` to set free, and where there is none.
    """

    id: int
    op: str
    gpu: str = ""
    value: float | None = None


@dataclass(frozen=True)
class GpuStatus:
    """One GPU in the keeper's care.

    Attributes:
        index: Its index.
        uuid: Its UUID.
        name: Product name.
        requested_w: Power limit that was asked for, watts; `None` where it cannot be read.
        enforced_w: Power limit in force, watts.
        original_w: The limit to go back to, watts; `None` where the keeper has changed nothing.
        clock_locked: Whether the keeper bounds its clock.
        fault: Why it cannot be read or restored.
    """

    index: int
    uuid: str
    name: str
    requested_w: float | None
    enforced_w: float | None
    original_w: float | None
    clock_locked: bool
    fault: str | None


def parse(line: bytes) -> Request:
    """The request in a line; raises `MalformedError` for anything else."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as fault:
        raise MalformedError("request", "it is not JSON") from fault
    if not isinstance(fields, dict):
        raise MalformedError("request", "it is not an object")
    op, number = fields.pop("op", None), fields.pop("id", None)
    if not isinstance(op, str) or op not in OPERATIONS:
        raise MalformedError("op", f"it is not one of {', '.join(OPERATIONS)}")
    if type(number) is not int or abs(number) >= 1 << 53:
        raise MalformedError("id", "it is not a whole number")
    expected = OPERATIONS[op]
    if set(fields) != {name.rstrip("?") for name in expected}:
        raise MalformedError(op, f"its fields are not {', '.join(expected) or 'none'}")
    if not expected:
        return Request(number, op)
    return Request(number, op, _gpu(fields["gpu"]), _value(expected[1], fields[expected[1].rstrip("?")]))


def _gpu(text: Any) -> str:
    if not isinstance(text, str) or not 0 < len(text) <= LONGEST_NAME or not text.isascii() or not text.isprintable():
        raise MalformedError("gpu", "it is not the name of a GPU")
    return text


def _value(name: str, value: Any) -> float | None:
    if value is None and name.endswith("?"):
        return None
    # Seven digits are more than any GPU has watts or megahertz, and fit what the driver takes.
    if type(value) not in (int, float) or not 0 < value < 1e6 or not math.isfinite(value):
        raise MalformedError(name.rstrip("?"), "it is not a positive number")
    return float(value)


def request_line(number: int, op: str, fields: Mapping[str, Any]) -> bytes:
    """The line of a request."""
    return json.dumps({"id": number, "op": op, **fields}).encode() + b"\n"


def success_line(number: int, values: Mapping[str, Any]) -> bytes:
    """The line of a reply that has what was asked for."""
    return json.dumps({"id": number, "ok": True, **values}).encode() + b"\n"


def failure_line(number: int | None, fault: DeployError) -> bytes:
    """The line of a reply that tells what went wrong."""
    said = {"error": type(fault).__name__, "where": fault.where, "problem": fault.problem}
    return json.dumps({"id": number, "ok": False, **said}).encode() + b"\n"


def values_of(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reply holds; raises the error that it tells."""
    if reply.get("ok") is True:
        return reply
    raise by_name(str(reply.get("error")), str(reply.get("where")), str(reply.get("problem")))
