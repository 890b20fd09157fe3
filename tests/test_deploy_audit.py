"""The audit log: lines, rotation, and what happens when the disk is full."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from llmcluster.deploy.audit import Audit, AuditError
from llmcluster.simulator.errors import InputError


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_json_in_order_and_appended_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(2):
        with Audit(path, fsync=True, clock=lambda: 7.0) as audit:
            audit.write("decision", caps=np.array([1.5, np.nan]), slots=np.array([1]), why=frozenset({"x"}))
            audit.write("write", gpu="0")
    found = lines(path)
    assert [(one["kind"], one["line"]) for one in found] == [("decision", 0), ("write", 1)] * 2
    assert found[0]["caps"] == [1.5, None]
    assert found[0]["monotonic_s"] == 7.0


def test_rotation_keeps_every_line_that_it_shall_keep(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with Audit(path, max_bytes=4096, keep=2) as audit:
        for i in range(200):
            audit.write("write", number=i)
    files = [path.with_name("audit.jsonl.2"), path.with_name("audit.jsonl.1"), path]
    numbers = [one["number"] for file in files for one in lines(file)]
    assert numbers == list(range(200 - len(numbers), 200))
    assert all(file.stat().st_size <= 4096 for file in files)
    assert not path.with_name("audit.jsonl.3").exists()


def test_a_full_device_is_an_audit_error() -> None:
    audit = Audit(Path("/dev/full"))
    with pytest.raises(AuditError, match="make room"):
        audit.write("decision")
    audit.close()


def test_after_a_line_was_cut_short_the_next_one_is_whole(tmp_path: Path) -> None:
    # A limit on the file's size cuts lines as a full disk does; it holds for a whole process.
    path = tmp_path / "audit.jsonl"
    code = f"""
        import resource, signal
        from pathlib import Path
        from llmcluster.deploy.audit import Audit, AuditError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        audit = Audit(Path({str(path)!r}))
        audit.write("decision", number=0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, resource.RLIM_INFINITY))
        for _ in range(2):
            try:
                audit.write("decision", text="x" * 200)
            except AuditError as fault:
                print(fault)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        audit.write("decision", number=1)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.count("make room") == 2
    texts = path.read_text().splitlines()
    assert json.loads(texts[0])["number"] == 0
    assert json.loads(texts[-1])["number"] == 1


def test_a_line_that_a_killed_process_left_unfinished_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"kind":"deci')
    with Audit(path) as audit:
        audit.write("decision")
    assert json.loads(path.read_text().splitlines()[1])["kind"] == "decision"


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"audit\.path"):
        Audit(tmp_path / "absent" / "audit.jsonl")
