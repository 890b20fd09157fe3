"""Saved states: plain data and arrays, in memory or as bytes, without pickle.

A part of a run (the agenda, a slot's life, a forecaster) says what it must remember as a *state*: a dict of plain
values, lists, dicts and numpy arrays, none of which anybody changes afterwards. A :class:`Snapshot` is the state of a
whole.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.format import descr_to_dtype, dtype_to_descr
from numpy.typing import NDArray

from .errors import InputError

State = dict[str, Any]

ARRAY, SNAPSHOT = "$array", "$snapshot"
FORMAT = "llmcluster snapshot 1"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a cluster, a plant or an environment; it may be restored any number of times.

    Attributes:
        of: Fingerprint of what it was taken of.
        state: What is remembered; parts that can be restored by themselves are snapshots in turn.
    """

    of: str
    state: State

    def state_for(self, fingerprint: str) -> State:
        """The state, for one who can take it up.

        Raises:
            InputError: It was taken of something else.
        """
        if self.of != fingerprint:
            raise InputError(
                "snapshot",
                "was taken of something else",
                "Restore it into a run of the same cluster, workload, faults and version",
            )
        return self.state

    def to_bytes(self) -> bytes:
        """The same as bytes; equal states give equal bytes."""
        arrays: list[NDArray[Any]] = []
        content = _plain(self, arrays)
        layout = [(dtype_to_descr(array.dtype), array.shape) for array in arrays]
        header = json.dumps({"format": FORMAT, "content": content, "arrays": layout}).encode()
        return b"".join([header, b"\n", *(_raw(_tidy(array)).tobytes() for array in arrays)])

    @classmethod
    def from_bytes(cls, content: bytes) -> Snapshot:
        """Reads what :meth:`to_bytes` gave.

        Raises:
            InputError: It is something else, or cut off.
        """
        try:
            begin = content.index(b"\n") + 1
            header = json.loads(content[:begin])
            if header["format"] != FORMAT:
                raise ValueError(f"it is of format '{header['format']}'")
            arrays = []
            for descr, shape in header["arrays"]:
                arrays.append(np.zeros(shape, descr_to_dtype(descr)))
                raw = _raw(arrays[-1])
                raw[...] = np.frombuffer(content, np.uint8)[begin : begin + len(raw)]
                begin += len(raw)
            found = _rich(header["content"], arrays)
        except (ValueError, LookupError, TypeError) as fault:
            raise InputError("snapshot", f"cannot be read ({fault})", "Give what Snapshot.to_bytes returned") from fault
        if not isinstance(found, cls):
            raise InputError("snapshot", "holds no state", "Give what Snapshot.to_bytes returned")
        return found


def _raw(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of an array, flat."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _tidy(array: NDArray[Any]) -> NDArray[Any]:
    """The array, with zeros in gaps between the fields of its records: numpy leaves there what it likes."""
    names = array.dtype.names or ()
    if not names or array.dtype.itemsize == sum(array.dtype[name].itemsize for name in names):
        return array
    tidy = np.zeros(array.shape, array.dtype)  # zeros_like would leave the gaps
    for name in names:
        tidy[name] = array[name]
    return tidy


def _plain(value: Any, arrays: list[NDArray[Any]]) -> Any:
    """The value in what JSON knows; arrays are moved to the list."""
    if isinstance(value, Snapshot):
        return {SNAPSHOT: value.of, "state": _plain(value.state, arrays)}
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {ARRAY: len(arrays) - 1}
    if isinstance(value, dict):
        return {key: _plain(part, arrays) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, arrays) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def _rich(value: Any, arrays: list[NDArray[Any]]) -> Any:
    """The reverse of :func:`_plain`; tuples come back as lists."""
    if isinstance(value, list):
        return [_rich(part, arrays) for part in value]
    if not isinstance(value, dict):
        return value
    if ARRAY in value:
        return arrays[value[ARRAY]]
    if SNAPSHOT in value:
        return Snapshot(value[SNAPSHOT], _rich(value["state"], arrays))
    return {key: _rich(part, arrays) for key, part in value.items()}


def copied(array: NDArray[Any]) -> NDArray[Any]:
    """A copy, made byte by byte: numpy copies records field by field, which takes twenty times as long."""
    return array.view(np.uint8).copy().view(array.dtype)


def overwrite(array: NDArray[Any], content: NDArray[Any]) -> None:
    """Puts what :func:`copied` returned back into an array."""
    array.view(np.uint8)[...] = content.view(np.uint8)


def fingerprint(*parts: Any) -> str:
    """A digest of arrays by their content and of all else by how it prints."""
    digest = hashlib.sha256()
    for part in parts:
        whole = part if isinstance(part, np.ndarray) else np.frombuffer(repr(part).encode(), np.uint8)
        digest.update(f"{whole.dtype.descr}{whole.shape}".encode())
        digest.update(_raw(whole).tobytes())
    return digest.hexdigest()


def generator_state(rng: np.random.Generator) -> State:
    """The state of a generator, with what it has spawned."""
    seeds: Any = rng.bit_generator.seed_seq
    return {"bits": rng.bit_generator.state, "seeds": seeds.state}


def generator_from(state: State) -> np.random.Generator:
    """A generator in a state of :func:`generator_state`."""
    bits = getattr(np.random, state["bits"]["bit_generator"])(np.random.SeedSequence(**state["seeds"]))
    bits.state = state["bits"]
    return np.random.Generator(bits)
