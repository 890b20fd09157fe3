"""Settings of the gateway: the file of `python -m llmcluster.deploy.gateway`, or the table `gateway` of the loop's."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from ...envs.actions import RouterName
from ...envs.spec import SloSpec, Spec
from ...errors import InputError
from ...files import read_toml


class BackendSpec(Spec):
    """An inference server that speaks OpenAI's API."""

    name: str = Field(min_length=1, description="Name of the slot of the scenario that it is.")
    url: str = Field(description="Where it is, without `/v1`, such as `http://127.0.0.1:8001`.")
    model: str = Field(min_length=1, description="Model that clients ask for.")
    served_name: str | None = Field(default=None, description="The server's own name of the model, where it differs.")
    api_key_file: Path | None = Field(default=None, description="File with the key that the server asks for.")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as fault:
            raise ValueError(f"'{url}' is no address ({fault})") from fault
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"'{url}' is no address such as http://127.0.0.1:8001")
        return url.rstrip("/")

    @property
    def upstream_model(self) -> str:
        """The name under which the server knows the model."""
        return self.served_name or self.model


class TimeoutSpec(Spec):
    """How long the gateway waits, seconds."""

    head_s: float = Field(default=10.0, gt=0, description="For the head of a client's request.")
    body_s: float = Field(default=30.0, gt=0, description="For the body of a client's request.")
    connect_s: float = Field(default=2.0, gt=0, description="For a connection to a backend.")
    first_byte_s: float = Field(default=300.0, gt=0, description="For the first byte of a backend's answer.")
    between_chunks_s: float = Field(
        default=60.0, gt=0, description="Between two chunks of an answer, of which the client has to take the first."
    )
    total_s: float = Field(default=1800.0, gt=0, description="For the whole answer, retries included.")
    drain_s: float = Field(default=30.0, gt=0, description="For requests under way when the gateway is told to end.")


class LimitSpec(Spec):
    """What is refused for its size."""

    path_bytes: int = Field(default=2048, ge=64, description="Path and query of a request (414).")
    header_bytes: int = Field(default=32_768, ge=1024, description="Headers of a request together (431).")
    body_bytes: int = Field(default=16 * 2**20, ge=1024, description="Body of a request (413).")
    answer_bytes: int = Field(default=64 * 2**20, ge=1024, description="A backend's answer that is no stream (502).")


class QueueSpec(Spec):
    """Requests that no backend has room for wait in the order in which they came."""

    most: int = Field(default=1024, ge=0, description="Waiting requests at most; the next one is refused (429).")
    timeout_s: float = Field(default=60.0, gt=0, description="How long one waits before it is refused (503).")


class HealthSpec(Spec):
    """How the gateway finds out which backends answer. A refused connection counts at once."""

    interval_s: float = Field(default=2.0, gt=0, description="Time between two `GET /health` of a backend.")
    timeout_s: float = Field(default=2.0, gt=0, description="Time for its answer.")
    unhealthy_after: int = Field(default=2, ge=1, description="Failures in a row after which it gets no requests.")
    healthy_after: int = Field(default=1, ge=1, description="Answers in a row after which it gets them again.")


class GatewayConfig(Spec):
    """The gateway: where it listens, who may use it, and what stands behind it."""

    host: str = Field(default="127.0.0.1", description="Address to listen at; beyond loopback only with client tokens.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port; 0 for a free one.")
    backends: tuple[BackendSpec, ...] = Field(min_length=1, description="The inference servers.")
    client_tokens: Path | None = Field(
        default=None, description="File of bearer tokens that clients may use, a line each; read again when it changes."
    )
    admin_tokens: Path | None = Field(
        default=None, description="The same for `/admin`, which is closed without such a file."
    )
    slo: dict[str, SloSpec] = Field(
        default={"default": SloSpec()},
        min_length=1,
        description="SLO classes; the header `x-slo-class` chooses one, the first is the default.",
    )
    router: RouterName = Field(default="least-outstanding", description="Router while nobody steers.")
    lease_s: float = Field(default=30.0, gt=0, description="How long a steer holds unless there is another.")
    retries: int = Field(default=2, ge=0, description="Attempts elsewhere at most, before the first byte.")
    prefix_tokens: int = Field(default=64, ge=1, description="Prompt tokens to a unit of the router prefix-affinity.")
    prefix_units: int = Field(default=65_536, ge=1, description="Units per backend that it remembers.")
    timeouts: TimeoutSpec = Field(default=TimeoutSpec(), description="How long it waits.")
    limits: LimitSpec = Field(default=LimitSpec(), description="What it refuses for its size.")
    queue: QueueSpec = Field(default=QueueSpec(), description="Where requests wait that no backend has room for.")
    health: HealthSpec = Field(default=HealthSpec(), description="How it finds out which backends answer.")

    @model_validator(mode="after")
    def _backends_differ(self) -> GatewayConfig:
        names = [backend.name for backend in self.backends]
        if len(set(names)) < len(names):
            raise ValueError(f"backends {names} must have names that differ")
        return self

    @model_validator(mode="after")
    def _is_guarded(self) -> GatewayConfig:
        if not is_loopback(self.host) and self.client_tokens is None:
            raise ValueError(f"host: '{self.host}' is open to others; set client_tokens, or listen at 127.0.0.1")
        if self.client_tokens is not None and self.client_tokens == self.admin_tokens:
            raise ValueError("admin_tokens: is the clients' file; give administration tokens of its own")
        return self

    def rooted(self, folder: Path) -> GatewayConfig:
        """The same with relative paths of files taken from ``folder``."""

        def absolute(path: Path | None) -> Path | None:
            return None if path is None else folder / path

        backends = tuple(b.model_copy(update={"api_key_file": absolute(b.api_key_file)}) for b in self.backends)
        tokens = {"client_tokens": absolute(self.client_tokens), "admin_tokens": absolute(self.admin_tokens)}
        return self.model_copy(update={"backends": backends, **tokens})


def load_gateway_config(path: Path) -> GatewayConfig:
    """Reads the settings out of a TOML file: its table ``gateway``, or all of it where there is none.

    Raises:
        InputError: The file cannot be read, or does not hold.
    """
    content: dict[str, Any] = read_toml(path)
    try:
        return GatewayConfig.model_validate(content.get("gateway", content)).rooted(path.absolute().parent)
    except ValidationError as fault:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'gateway'}: {e['msg']}" for e in fault.errors()[:3]]
        remedy = "See GatewayConfig in docs/reference.md for what it may say"
        raise InputError(str(path), "; ".join(problems).replace("Value error, ", ""), remedy) from fault


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
