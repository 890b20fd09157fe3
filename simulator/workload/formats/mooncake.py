"""Mooncake traces: a JSON object a line, `timestamp` in ms, lengths, and hashes of the prompt's 512-token blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...units import MAX_TIME_S, PS_PER_MS, PS_PER_S
from ..table import RequestTable
from .columns import MAX_TOKENS

BLOCK_TOKENS = 512
Line = tuple[int, int, int, list[int]]


def read_mooncake(path: Path, rows: int | None = None) -> Iterator[RequestTable]:
    """Reads a Mooncake file; the hash of a last, part-filled block is left out, for such a block is never shared."""
    lines = _lines(path)
    first_ms: int | None = None
    while part := list(islice(lines, rows)):
        first_ms = part[0][0] if first_ms is None else first_ms
        yield _table(path, part, first_ms)


def _lines(path: Path) -> Iterator[Line]:
    """Time in ms, prompt tokens, output tokens and hashes of each line, in order of time."""
    last_ms = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            where = f"{path}:{number}"
            line = _row(where, text)
            if line[0] < last_ms:
                raise InputError(where, "timestamp is earlier than on the line before", "Sort the lines by timestamp")
            last_ms = line[0]
            yield line


def _table(path: Path, lines: list[Line], first_ms: int) -> RequestTable:
    time_ms, prompt, output, hashes = zip(*lines, strict=True)
    if time_ms[-1] - first_ms > MAX_TIME_S * (PS_PER_S // PS_PER_MS):
        raise InputError(str(path), "the trace spans more than 106 days", "Split it")
    return RequestTable.from_columns(
        (np.array(time_ms, np.int64) - first_ms) * PS_PER_MS,
        prompt,
        output,
        source=str(path),
        prefix_offset=np.concatenate([[0], np.cumsum([len(blocks) for blocks in hashes])]),
        prefix_hash=np.concatenate([np.array(blocks, np.int64) for blocks in hashes]),
        prefix_block_tokens=BLOCK_TOKENS,
    )


def _row(where: str, text: str) -> Line:
    try:
        row: Any = json.loads(text)
    except ValueError as fault:
        remedy = "The file is cut or damaged: download it again, or remove the line"
        raise InputError(where, f"not a JSON object ({fault})", remedy) from None
    if not isinstance(row, dict):
        raise InputError(where, "not a JSON object", "Each line is one object")
    time_ms = _integer(where, row, "timestamp", 0, 2**53)
    prompt = _integer(where, row, "input_length", 1, MAX_TOKENS)
    output = _integer(where, row, "output_length", 1, MAX_TOKENS)
    blocks = row.get("hash_ids", [])
    if not isinstance(blocks, list) or not all(type(block) is int and 0 <= block < 2**63 for block in blocks):
        raise InputError(where, "hash_ids is not a list of integers", "Correct or remove the line")
    return time_ms, prompt, output, blocks[: prompt // BLOCK_TOKENS]


def _integer(where: str, row: dict[str, Any], name: str, low: int, high: int) -> int:
    if name not in row:
        raise InputError(where, f"no field {name}", "Each line has timestamp, input_length, output_length and hash_ids")
    value = row[name]
    if type(value) is not int or not low <= value <= high:
        raise InputError(where, f"{name} is {value!r}", f"Give an integer of at least {low}, or remove the line")
    return value
