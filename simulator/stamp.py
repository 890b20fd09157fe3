"""A stamp of the physics: what is learnt from simulated power is stale once it changes."""

from __future__ import annotations

import hashlib
import io
import json
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = (
    "catalog/*.py",
    "communication.py",
    "deployments.py",
    "experts.py",
    "facility.py",
    "host.py",
    "parallelism.py",
    "performance.py",
    "power.py",
    "transfers.py",
    "kernels/leave.py",
    "kernels/physics.py",
    "kernels/replica.py",
    "kernels/scheduler.py",
    "kernels/tables.py",
)
"""How long work takes and what it draws."""
FIGURES = ("catalog/gpus.toml", "catalog/models.toml", "catalog/scales.toml", "workload/*.toml")
LAYOUT = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)


def physics_stamp() -> str:
    """Digest of the sources and figures that power depends on, whatever their comments and docstrings say."""
    digest = hashlib.sha256()
    for name, content in _parts():
        digest.update(name.encode() + b"\0" + content.encode() + b"\0")
    return digest.hexdigest()[:16]


def _parts() -> Iterator[tuple[str, str]]:
    for pattern in (*SOURCES, *FIGURES):
        for path in sorted(HERE.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            plain = bare(text) if path.suffix == ".py" else json.dumps(tomllib.loads(text), sort_keys=True)
            yield path.relative_to(HERE).as_posix(), plain


def bare(source: str) -> str:
    """Python without comments, docstrings, and empty lines."""
    lines = source.splitlines()
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    begins = True  # a statement
    for token, after in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        alone = begins and token.type == tokenize.STRING and after.type in (tokenize.NEWLINE, tokenize.COMMENT)
        if alone or token.type == tokenize.COMMENT:
            _blank(lines, token.start, token.end)
        if token.type != tokenize.COMMENT:
            begins = token.type in LAYOUT
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _blank(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> None:
    """Writes spaces over what lies between two places, each a line from 1 on and a column."""
    for number in range(start[0], end[0] + 1):
        line = lines[number - 1]
        first, last = start[1] if number == start[0] else 0, end[1] if number == end[0] else len(line)
        lines[number - 1] = line[:first] + " " * (last - first) + line[last:]
