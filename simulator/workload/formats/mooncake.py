"""Mooncake traces: a JSON object a line, `timestamp` in ms, lengths, and hashes of the prompt's 512-token blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...units import MAX_TIME_S, PS_PER_MS, PS_PER_S
from ..table import RequestTable
from .columns import MAX_TOKENS

BLOCK_TOKENS = 512


def read_mooncake(path: Path) -> RequestTable:
    """Reads a Mooncake file; the hash of a last, part-filled block is left out, for such a block is never shared."""
    rows = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            where = f"{path}:{number}"
            rows.append(_row(where, text))
            if rows[-1][0] < rows[max(0, number - 2)][0]:
                raise InputError(where, "timestamp is earlier than on the line before", "Sort the lines by timestamp")
    time_ms, prompt, output, hashes = zip(*rows, strict=True)
    if time_ms[-1] - time_ms[0] > MAX_TIME_S * (PS_PER_S // PS_PER_MS):
        raise InputError(str(path), "the trace spans more than 106 days", "Split it")
    return RequestTable.from_columns(
        (np.array(time_ms, np.int64) - time_ms[0]) * PS_PER_MS,
        prompt,
        output,
        source=str(path),
        prefix_offset=np.concatenate([[0], np.cumsum([len(blocks) for blocks in hashes])]),
        prefix_hash=np.concatenate([np.array(blocks, np.int64) for blocks in hashes]),
        prefix_block_tokens=BLOCK_TOKENS,
    )


def _row(where: str, text: str) -> tuple[int, int, int, list[int]]:
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
