"""The keeper's protocol against nonsense: it never dies, and never writes but what its holder asked for."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcluster.deploy.errors import DeployError
from llmcluster.deploy.keeper.client import KeeperClient
from llmcluster.deploy.keeper.errors import KeeperError, KeeperGoneError, LeaseError, MalformedError
from llmcluster.deploy.keeper.protocol import LONGEST_LINE, LONGEST_NAME, OPERATIONS, Request, parse, request_line
from llmcluster.deploy.rehearsal.nvml import WRITES, EmulatedGpus
from llmcluster.tests.emulated import A100, H100, emulated
from llmcluster.tests.keepers import keeper_thread

FLOOR_W, CEILING_W = 150.0, 600.0
TAKE = request_line(1, "take", {})


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedGpus]:
    made = emulated(tmp_path_factory.mktemp("keeper"))
    with made.bound():
        yield made


@pytest.fixture(scope="module")
def path(gpus: EmulatedGpus) -> Iterator[Path]:
    socket = gpus.path.with_name("keeper.sock")
    with keeper_thread(socket, floor_w=FLOOR_W, ceiling_w=CEILING_W):
        yield socket


def writes(gpus: EmulatedGpus) -> int:
    return sum(gpus.calls(gpu, call) for gpu in (0, 1) for call in WRITES)


names = st.sampled_from(["0", "1", H100.name, A100.name, "GPU-nonsense"])
numbers = st.floats(1e-3, 999_999.0) | st.integers(1, 999_999)
fields = {"gpu": names, "watts": numbers, "highest_mhz": numbers | st.none()}
requests = st.sampled_from(sorted(OPERATIONS)).flatmap(
    lambda op: st.fixed_dictionaries(
        {"id": st.integers(0, 2**53 - 1), "op": st.just(op)}
        | {name: fields[name] for name in (entry.rstrip("?") for entry in OPERATIONS[op])}
    )
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
WRONG: dict[str, st.SearchStrategy[Any]] = {
    "id": st.sampled_from([None, True, 1.0, "1", 2**53, -(2**53), [], {}]),
    "op": st.sampled_from([None, 0, "", "SET_POWER_LIMIT", "stop", "__class__", [], {}]) | st.text(max_size=3),
    "gpu": st.sampled_from([None, 0, "", "x" * (LONGEST_NAME + 1), "ü", "0\n", "\x00", "\ud800", ["0"], {}]),
    "watts": st.sampled_from([None, True, "400", 0, -1, 1e6, 10**400, float("nan"), float("inf"), [400], {}]),
    "highest_mhz": st.sampled_from([True, "900", 0, -0.0, -5.0, 1e6, 10**400, float("-inf"), [], {}]),
}


@st.composite
def malformed(draw: st.DrawFn) -> bytes:
    """A line, without its end, that is close to a request and yet is none."""
    request = draw(requests)
    kind = draw(st.sampled_from(["bytes", "json", "cut", "lacks", "extra", "wrong", "wrapped", "encoded"]))
    if kind == "bytes":
        return b"\xff" + draw(st.binary(max_size=40)).replace(b"\n", b"")
    if kind == "json":
        return json.dumps(draw(json_values.filter(lambda value: not isinstance(value, dict)))).encode()
    if kind == "cut":
        line = json.dumps(request).encode()
        return line[: draw(st.integers(0, len(line) - 1))]
    if kind == "encoded":
        return json.dumps(request).encode("utf-16")
    if kind == "wrapped":
        return json.dumps([request]).encode()
    if kind == "lacks":
        del request[draw(st.sampled_from(sorted(request)))]
    elif kind == "extra":
        request[draw(st.text(max_size=5).filter(lambda name: name not in {"id", "op", *fields}))] = draw(json_values)
    else:
        name = draw(st.sampled_from(sorted(request)))
        request[name] = draw(WRONG[name])
    return json.dumps(request).encode()


@given(request=requests)
def test_what_is_asked_for_is_understood(request: dict[str, Any]) -> None:
    said = {key: value for key, value in request.items() if key not in {"id", "op"}}
    value = said.get("watts", said.get("highest_mhz"))
    assert parse(request_line(request["id"], request["op"], said)) == Request(
        request["id"], request["op"], said.get("gpu", ""), value
    )


@settings(max_examples=200)
@given(line=malformed())
def test_what_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(MalformedError):
        parse(line)


@settings(max_examples=300)
@given(line=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_nothing_but_a_request_or_a_refusal_comes_of_any_line(line: bytes) -> None:
    with suppress(MalformedError):
        assert parse(line).op in OPERATIONS


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 4000,
        b'{"id":' * 700,
        b"9" * 4090,
        b'{"id": 1, "op": "beat"' + b" " * 4000,
        b'{"id": 1e999, "op": "beat"}',
    ],
)
def test_lines_that_upset_parsers_are_refused(line: bytes) -> None:
    with pytest.raises(MalformedError):
        parse(line)


def converse(path: Path, data: bytes) -> list[dict[str, Any]]:
    """Everything that a keeper says to ``data`` until it has dealt with all of it."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(20)
        wire.connect(str(path))
        wire.sendall(data)
        wire.shutdown(socket.SHUT_WR)
        said = b""
        while chunk := wire.recv(65536):
            said += chunk
    return [json.loads(line) for line in said.splitlines()]


@given(lines=st.lists(malformed().filter(lambda line: b"\n" not in line), max_size=5), rest=st.binary(max_size=50))
def test_a_holder_that_sends_nonsense_changes_nothing(
    gpus: EmulatedGpus, path: Path, lines: list[bytes], rest: bytes
) -> None:
    before = writes(gpus)
    rest = rest.replace(b"\n", b"")
    replies = converse(path, TAKE + b"".join(line + b"\n" for line in lines) + rest)
    assert [reply["ok"] for reply in replies] == [True] + [False] * len(lines)
    assert {reply["error"] for reply in replies[1:]} <= {"MalformedError"}
    assert writes(gpus) == before
    with KeeperClient(path, control=False) as client:
        assert client.status().holder is None


@given(lines=st.lists(requests.filter(lambda request: request["op"] != "take"), max_size=5), noise=st.binary())
def test_who_does_not_hold_the_lease_changes_nothing(
    gpus: EmulatedGpus, path: Path, lines: list[dict[str, Any]], noise: bytes
) -> None:
    before = writes(gpus)
    replies = converse(path, b"".join(json.dumps(line).encode() + b"\n" for line in lines) + noise)
    for request, reply in zip(lines, replies, strict=False):
        assert reply["id"] == request["id"]
        assert reply["ok"] is (request["op"] == "status")
        assert reply["ok"] or reply["error"] == "LeaseError"
    assert writes(gpus) == before


@given(extra=st.integers(1, 3 * LONGEST_LINE), ends=st.booleans())
def test_a_line_too_long_ends_the_connection(gpus: EmulatedGpus, path: Path, extra: int, ends: bool) -> None:
    before = writes(gpus)
    wish = request_line(2, "set_power_limit", {"gpu": "0", "watts": 400})
    replies = converse(path, TAKE + b"x" * (LONGEST_LINE + extra) + b"\n" * ends + wish)
    assert [reply.get("error") for reply in replies] == [None, "MalformedError"]
    assert "bytes long" in replies[1]["problem"]
    assert writes(gpus) == before


steps = st.tuples(
    st.integers(0, 1),
    st.sampled_from(["set", "set", "lock", "free", "beat", "restore", "hang up"]),
    st.integers(0, 1),
    st.floats(1.0, 2000.0),
)


@given(plan=st.lists(steps, max_size=12))
def test_two_that_compete_are_served_one_at_a_time_within_bounds(
    gpus: EmulatedGpus, path: Path, plan: list[tuple[int, str, int, float]]
) -> None:
    kinds = (H100, A100)
    limits = [kind.cap_max_w for kind in kinds]
    locked = [False, False]
    holder: int | None = None
    clients: list[KeeperClient | None] = [None, None]
    for who, deed, gpu, value in plan:
        client = clients[who]
        if deed == "hang up":
            if client is not None:
                client.close()
                clients[who] = None
                holder = None
                limits, locked = [kind.cap_max_w for kind in kinds], [False, False]
        elif holder not in (None, who):
            with pytest.raises(LeaseError):
                KeeperClient(path)
        else:
            if client is None:
                client = clients[who] = KeeperClient(path)
                holder = who
            if deed == "set":
                limits[gpu] = min(max(value, FLOOR_W, kinds[gpu].cap_min_w), CEILING_W, kinds[gpu].cap_max_w)
                assert client.set_power_limit(str(gpu), value).enforced_w == pytest.approx(limits[gpu], abs=1e-3)
            elif deed in ("lock", "free"):
                client.lock_clock(str(gpu), value if deed == "lock" else None)
                locked[gpu] = deed == "lock"
            elif deed == "restore":
                client.restore()
                limits, locked = [kind.cap_max_w for kind in kinds], [False, False]
            else:
                client.beat()
        assert [gpus.limit_w(g) for g in (0, 1)] == pytest.approx(limits, abs=1e-3)
        assert [gpus.clock_lock_mhz(g) is not None for g in (0, 1)] == locked
    for client in clients:
        if client is not None:
            client.close()
    untouched = [(kind.cap_max_w, None) for kind in kinds]
    assert [(gpus.limit_w(g), gpus.clock_lock_mhz(g)) for g in (0, 1)] == untouched


def test_errors_come_back_as_what_they_were(path: Path) -> None:
    with KeeperClient(path) as client:
        for fault in (KeeperError, KeeperGoneError, MalformedError):
            assert issubclass(fault, DeployError)
        with pytest.raises(MalformedError, match="watts: it is not a positive number"):
            client.set_power_limit("0", float("nan"))
        with pytest.raises(MalformedError, match="gpu: it is not the name of a GPU"):
            client.set_power_limit("", 400.0)
        client.beat()
