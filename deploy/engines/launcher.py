"""Commands of the user's that start and stop inference servers."""

from __future__ import annotations

import logging
import shlex
import string
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import InputError
from ..readings import ReadingError

logger = logging.getLogger(__name__)

FIELDS = ("slot", "model", "gpus", "port", "tp")
TOLD_BYTES = 400
"""So much of what a command that failed wrote last goes into the message."""


@dataclass(frozen=True)
class Place:
    """Where a server runs.

    Attributes:
        slot: Name of the slot.
        gpus: Its GPUs, as they are configured.
        port: Port that its server listens on.
    """

    slot: str
    gpus: tuple[str, ...]
    port: int

    def fields(self, model: str) -> dict[str, str]:
        """What stands for the names in braces; ``tp`` is the number of GPUs."""
        return {
            "slot": self.slot,
            "model": model,
            "gpus": ",".join(self.gpus),
            "port": str(self.port),
            "tp": str(len(self.gpus)),
        }


class Launcher:
    """Starts and stops servers by commands, such as `systemctl start vllm@{port}` or a script.

    A command is a list of words, each of which may have `{slot}`, `{model}`, `{gpus}` (comma-separated), `{port}` and
    `{tp}` in it. No shell sees it: a word stays a word, whatever is filled in. It must come back once the server has
    been started (or stopped), whether or not that is ready: `docker run --detach`, not `docker run`.

    Args:
        load: Starts a server.
        stop: Ends one.
        dry: Whether commands are only logged.
        timeout_s: A command that takes longer is killed, and has failed.

    Attributes:
        dry: Whether commands are only logged.

    Raises:
        InputError: A command has no words, or a name in braces that is not known.
    """

    def __init__(self, load: Sequence[str], stop: Sequence[str], *, dry: bool = True, timeout_s: float = 60.0) -> None:
        self._words = {"load": _checked("load", load), "stop": _checked("stop", stop)}
        self.dry, self._timeout_s = dry, timeout_s

    def load(self, place: Place, model: str) -> None:
        """Starts a server for a model.

        Raises:
            ReadingError: The command could not be run, failed, or took too long.
        """
        self._run("load", place.fields(model))

    def stop(self, place: Place, model: str = "") -> None:
        """Ends the server; raises as :meth:`load` does."""
        self._run("stop", place.fields(model))

    def _run(self, verb: str, fields: Mapping[str, str]) -> None:
        words = [word.format_map(fields) for word in self._words[verb]]
        line = shlex.join(words)
        if self.dry:
            logger.info("dry run, not carried out: %s", line)
            return
        logger.info("carried out: %s", line)
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=self._timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ReadingError(f"`{line}` took longer than {self._timeout_s:g} s; let it detach the server") from None
        except OSError as fault:
            raise ReadingError(f"`{line}` cannot be run ({fault.strerror}); check the launcher's command") from fault
        if done.returncode:
            told = done.stdout[-TOLD_BYTES:].decode("utf-8", "replace").strip()
            raise ReadingError(f"`{line}` ended with {done.returncode}: {told or 'it wrote nothing'}")


def _checked(verb: str, words: Sequence[str]) -> tuple[str, ...]:
    where = f"launcher.{verb}"
    if isinstance(words, str) or not words:
        raise InputError(where, "is no list of words", 'Write it like ["systemctl", "start", "vllm@{port}"]')
    for word in words:
        try:
            named = [name for _, name, _, _ in string.Formatter().parse(word) if name is not None]
        except ValueError as fault:
            raise InputError(where, f"'{word}': {fault}", "Write braces that stand for themselves twice") from None
        if strange := [name for name in named if name not in FIELDS]:
            known = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise InputError(where, f"'{word}' has {{{strange[0]}}}, which is not known", f"Use {known}")
    return tuple(words)
