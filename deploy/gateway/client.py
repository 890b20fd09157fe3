"""The gateway's administration, as the control loop calls it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from ...errors import InputError
from ..readings import GatewayReading, ReadingError

MOST_BYTES = 2**20


class HttpGatewayClient:
    """Reads and steers a gateway over HTTP. Implements :class:`GatewayClient`.

    Args:
        url: Where the gateway is.
        token: One of its administration tokens.
        timeout_s: How long each step of a call may take, seconds.

    Raises:
        InputError: The address is none.
    """

    def __init__(self, url: str, token: str, timeout_s: float = 2.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"gateway '{url}'", "is no address", "Give one such as http://127.0.0.1:8080")
        self._url, self._token, self._timeout_s = url, token, timeout_s
        self._host, self._port, self._prefix = parts.hostname, parts.port, parts.path.rstrip("/")
        secure = parts.scheme == "https"
        self._connection: type[http.client.HTTPConnection] = (
            http.client.HTTPSConnection if secure else http.client.HTTPConnection
        )

    def read(self) -> GatewayReading:
        """The reading of now.

        Raises:
            ReadingError: The gateway does not answer in time.
        """
        return self._reading(self._call("GET", "/admin/reading", None))

    def steer(
        self,
        router: str | None,
        weights: Mapping[str, float],
        limits: Mapping[str, int],
        closed: Collection[str] | None = None,
    ) -> None:
        """Sets router, routing weights and in-flight limits (0 for none); they lapse unless set again in time.

        Args:
            router: The router; `None` leaves it as it is.
            weights: Weights by backend; those left out keep theirs.
            limits: Limits by backend; those left out keep theirs.
            closed: Backends that take no new request, such as those asleep. Given, even if empty, it makes weight 0
                what it is in the simulator: such a backend takes what none with a weight has room for. Without it,
                a backend of weight 0 takes nothing.

        Raises:
            ReadingError: The gateway does not answer in time, or refuses.
        """
        steer = {
            "router": router,
            "weights": {name: float(weight) for name, weight in weights.items()},
            "limits": {name: int(limit) for name, limit in limits.items()},
            "closed": None if closed is None else list(closed),
        }
        self._call("POST", "/admin/steer", json.dumps(steer).encode())

    def _call(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        connection = self._connection(self._host, self._port, timeout=self._timeout_s)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        try:
            connection.request(method, self._prefix + path, body, headers)
            response = connection.getresponse()
            content = json.loads(response.read(MOST_BYTES))
        except (OSError, http.client.HTTPException, ValueError) as fault:
            raise ReadingError(f"the gateway at {self._url} does not answer: {fault}") from fault
        finally:
            connection.close()
        if response.status != 200 or not isinstance(content, dict):
            said = content.get("error", {}).get("message", "") if isinstance(content, dict) else ""
            raise ReadingError(f"the gateway at {self._url} answers {response.status}: {said}")
        return content

    def _reading(self, content: dict[str, Any]) -> GatewayReading:
        try:
            return GatewayReading(**content)
        except TypeError as fault:
            raise ReadingError(f"the gateway at {self._url} tells something else: {fault}") from fault
