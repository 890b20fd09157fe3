"""The verb `llmcluster data`: list, fetch and convert published traces."""

from __future__ import annotations

import hashlib
import http.client
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Column, Table

from ..simulator.errors import InputError
from ..simulator.files import whole
from ..simulator.units import PS_PER_S
from ..simulator.workload.formats import READERS, WRITERS, write_workload
from ..simulator.workload.stream import RequestStream, repeated
from ..simulator.workload.table import RequestTable
from ..simulator.workload.traces import TRACES, Trace, cache_path, find, resolve
from .output import JsonOption, people, write_json

CHUNK = 1 << 18
TIMEOUT_S = 30.0

app = typer.Typer(help="Published traces: list, fetch, convert.", no_args_is_help=True)


@app.command("list", epilog="Example: llmcluster data list --json traces.json")
def list_traces(json_file: JsonOption = None) -> None:
    """List the traces that can be fetched, with their source and licence."""
    rows = [
        {"name": name, "fetched": cache_path(name).is_file(), "path": str(cache_path(name)), **trace.model_dump()}
        for name, trace in TRACES.items()
    ]
    table = Table(Column("name", no_wrap=True), "what", "format", "MB", "licence", "fetched", box=None)
    for row in rows:
        size = "?" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.1f}"
        table.add_row(row["name"], row["title"], row["format"], size, row["licence"], "yes" if row["fetched"] else "no")
    _report({"traces": rows}, table, json_file)


@app.command("fetch", epilog="Example: llmcluster data fetch azure-2023-conv")
def fetch_command(
    name: Annotated[str, typer.Argument(help="A name that `llmcluster data list` shows")],
    url: Annotated[str | None, typer.Option(help="Fetch from this mirror instead")] = None,
    allow_unverified: Annotated[bool, typer.Option(help="Accept a trace whose SHA-256 is not known")] = False,
    force: Annotated[bool, typer.Option(help="Fetch again even if it is there")] = False,
    json_file: JsonOption = None,
) -> None:
    """Download a trace into the cache folder and check its size and SHA-256."""
    result = fetch(name, url, allow_unverified=allow_unverified, force=force)
    if not result["verified"]:
        _warn(f"{name} is unverified: its published SHA-256 is not known; this file has {result['sha256']}")
    _report(result, f"{name}: {result['path']}", json_file)


@app.command(
    "convert",
    epilog="Example: llmcluster data convert azure-2023-conv conv.csv --to vidur --rate-factor 2",
)
def convert_command(
    source: Annotated[str, typer.Argument(help="A trace file, or the name of a fetched trace")],
    target: Annotated[Path, typer.Argument(help="File to write")],
    to: Annotated[str, typer.Option(help=f"Format to write: {', '.join(WRITERS)}")],
    from_: Annotated[
        str | None, typer.Option("--from", help=f"Format read: {', '.join(READERS)}; told by default")
    ] = None,
    rate_factor: Annotated[float, typer.Option(help="Play it this many times as fast")] = 1.0,
    repeat: Annotated[int, typer.Option(help="Play it this many times over")] = 1,
    json_file: JsonOption = None,
) -> None:
    """Convert a trace to another format; it may be larger than memory."""
    stream = repeated(RequestStream.from_file(resolve(source), from_, closed_loop=True).scaled(rate_factor), repeat)
    result = {"path": str(target), "format": to, "requests": 0, "duration_s": 0.0}
    write_workload(_counted(stream, result), target, to)
    _report(result, f"{target}: {result['requests']:,} requests over {result['duration_s']:,.1f} s", json_file)


def _counted(stream: RequestStream, result: dict[str, Any]) -> Iterator[RequestTable]:
    """Enters the number of requests and the time of the last one as they pass."""
    for chunk in stream:
        if len(chunk):
            result["requests"] += len(chunk)
            result["duration_s"] = int(chunk.arrival_ps[-1]) / PS_PER_S
        yield chunk


def fetch(name: str, url: str | None = None, *, allow_unverified: bool = False, force: bool = False) -> dict[str, Any]:
    """Downloads a trace into the cache unless it is there, and checks it.

    Args:
        name: A name of the catalogue.
        url: A mirror to use instead of the published place.
        allow_unverified: Accept a trace whose hash the catalogue does not state.
        force: Download even if the file is there.

    Returns:
        Name, path, URL, size in bytes, SHA-256, and whether they were checked against the catalogue's.

    Raises:
        InputError: No such trace, no answer, or not the file that was published.
    """
    trace, path = find(name), cache_path(name)
    if trace.sha256 is None and not allow_unverified:
        raise InputError(name, "its published SHA-256 is not known", "Accept what comes with --allow-unverified")
    source = url or trace.url
    if force or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial:
            _download(source, partial, name, path)
            digest = _check(trace, partial, source, f"Fetch it from {trace.url}, or ask the publisher")
    else:
        digest = _check(trace, path, str(path), "Fetch it again with --force")
    return {
        "name": name,
        "path": str(path),
        "url": source,
        "size_bytes": path.stat().st_size,
        "sha256": digest,
        "verified": trace.sha256 is not None,
    }


def _download(source: str, partial: Path, name: str, path: Path) -> None:
    by_hand = f"Check the connection, or download it by hand and save it as {path}"
    if urlsplit(source).scheme not in ("http", "https"):
        raise InputError("--url", f"{source} is not a web address", "Give one that starts with http:// or https://")
    request = urllib.request.Request(source, headers={"User-Agent": "llmcluster"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer, partial.open("wb") as file:
            stated = int(answer.headers["Content-Length"]) if answer.headers["Content-Length"] else None
            with _progress() as progress:
                task = progress.add_task(name, total=stated)
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    progress.advance(task, len(chunk))
    except urllib.error.HTTPError as fault:
        fault.close()
        raise InputError(source, f"the server answered {fault.code} {fault.reason}", by_hand) from fault
    except (OSError, http.client.HTTPException) as fault:
        reason = getattr(fault, "reason", None) or fault
        raise InputError(source, f"no answer ({reason})", by_hand) from fault
    got = partial.stat().st_size
    if stated is not None and got != stated:
        raise InputError(source, f"the download ended after {got} of {stated} bytes", "Fetch it again")


def _check(trace: Trace, file: Path, where: str, remedy: str) -> str:
    """SHA-256 of the file; raises `InputError` if it or the size is not what the catalogue states."""
    size = file.stat().st_size
    if trace.size_bytes is not None and size != trace.size_bytes:
        raise InputError(where, f"{size} bytes where {trace.size_bytes} were published", remedy)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if trace.sha256 is not None and digest != trace.sha256:
        raise InputError(where, f"SHA-256 is {digest} where {trace.sha256} was published", remedy)
    return digest


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _report(result: dict[str, Any], human: Any, json_file: str | None) -> None:
    """Prints for people, or JSON alone where stdout is asked for it."""
    if json_file != "-":
        people(json_file).print(human, soft_wrap=isinstance(human, str), markup=False)
    write_json(result, json_file)
