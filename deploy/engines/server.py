"""What can be done to a vLLM server: sleep, wake, start, stop."""

from __future__ import annotations

from ..readings import ReadingError
from .http import checked_url, fetch
from .launcher import Launcher, Place
from .vllm import is_sleeping


class VllmServer:
    """The actuator of the `lifecycle` action for one slot. Every call takes as long as it takes.

    Sleep needs a vLLM that was started with `--enable-sleep-mode` and `VLLM_SERVER_DEV_MODE=1`. That opens `/sleep` and
    more to whoever reaches its port, so it must listen where only the gateway and the control loop come.

    Args:
        url: Where the server listens, without a path.
        launcher: Starts and stops it; without one these do nothing.
        place: Where it runs, for the launcher.
        level: Sleep level: 1 keeps the weights in host memory, 2 drops them, to be read again when it wakes.
        timeout_s: A sleep or a wake that takes longer has failed.
    """

    def __init__(
        self,
        url: str,
        launcher: Launcher | None = None,
        place: Place | None = None,
        level: int = 1,
        timeout_s: float = 300.0,
    ) -> None:
        self._url, self._launcher, self._place = checked_url(url), launcher, place
        self._level, self._timeout_s = level, timeout_s

    @property
    def launches(self) -> bool:
        """Whether :meth:`load` and :meth:`stop` do anything: there is a launcher, and it is not dry."""
        return self._launcher is not None and self._place is not None and not self._launcher.dry

    @property
    def is_asleep(self) -> bool:
        """Whether it says that it sleeps; raises as :meth:`sleep` does."""
        return is_sleeping(self._ask("is_sleeping", "GET"))

    def sleep(self) -> None:
        """Puts it to sleep once the requests that it has are done; older versions (0.14 among them) must have none.

        Raises:
            ReadingError: It does not answer in time, or refuses.
        """
        self._ask(f"sleep?level={self._level}&mode=wait")

    def wake(self) -> None:
        """Wakes it, and comes back when it serves; raises as :meth:`sleep` does."""
        if self._level == 1:
            self._ask("wake_up")
            return
        self._ask("wake_up?tags=weights")
        self._ask("collective_rpc", body=b'{"method": "reload_weights"}')
        self._ask("wake_up?tags=kv_cache")
        self._ask("reset_prefix_cache")  # what it remembers of prefixes was of the cache that it has dropped

    def load(self, model: str) -> None:
        """Starts a server for a model, see :meth:`Launcher.load`; nothing without a launcher."""
        if self._launcher is not None and self._place is not None:
            self._launcher.load(self._place, model)

    def stop(self) -> None:
        """Ends the server, see :meth:`Launcher.stop`; nothing without a launcher."""
        if self._launcher is not None and self._place is not None:
            self._launcher.stop(self._place)

    def _ask(self, path: str, method: str = "POST", body: bytes = b"") -> bytes:
        url = f"{self._url}/{path}"
        status, answer = fetch(url, self._timeout_s, method, body=body)
        if status == 404:
            raise ReadingError(
                f"{url} is not there; start vLLM with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1 in its environment"
            )
        if status != 200:
            raise ReadingError(f"{url} answers {status}: {answer[:200].decode('utf-8', 'replace')}")
        return answer
