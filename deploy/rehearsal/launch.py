"""Starts and stops emulated servers from outside: `python -m llmcluster.deploy.rehearsal.launch`.

As a launcher's command it takes the place of `systemctl` or `docker`, so that a rehearsal goes through real processes.
"""

from __future__ import annotations

import sys
from urllib.parse import urlencode

from ..engines.http import fetch
from ..readings import ReadingError

TIMEOUT_S = 30.0
USAGE = "usage: python -m llmcluster.deploy.rehearsal.launch URL load SLOT MODEL | URL stop SLOT"


def command(url: str, verb: str) -> list[str]:
    """Words of a launcher's command.

    Args:
        url: Where the servers are controlled.
        verb: ``load`` or ``stop``.
    """
    return [sys.executable, "-m", __name__, url, verb, "{slot}", *(["{model}"] if verb == "load" else [])]


def main(words: list[str]) -> int:
    """Carries a command out; gives its exit status."""
    match words:
        case [url, "load", slot, model]:
            target = f"{url}/load?{urlencode({'slot': slot, 'model': model})}"
        case [url, "stop", slot]:
            target = f"{url}/stop?{urlencode({'slot': slot})}"
        case _:
            print(USAGE, file=sys.stderr)
            return 2
    try:
        status, answer = fetch(target, TIMEOUT_S, "POST")
    except ReadingError as fault:
        print(fault, file=sys.stderr)
        return 1
    print(answer.decode("utf-8", "replace"), file=sys.stderr)
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
