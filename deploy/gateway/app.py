"""The gateway as an application: its paths, and what lives as long as it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .backends import Backend
from .config import GatewayConfig
from .dispatch import Dispatcher
from .downstream import ClientGoneError, Downstream
from .health import HealthChecks
from .metrics import Metrics
from .models import list_models
from .proxy import Proxy
from .refusal import HANDLERS, RefusalError
from .steering import Steer, Steering, reading_of
from .tokens import TokenFile, authorization
from .upstream import Upstream

PROXIED = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
STEER_BYTES = 2**20


class Gateway:
    """The parts of a gateway, and what its paths but the proxied ones answer.

    Args:
        config: The settings.
        clock: Monotonic time, seconds.

    Raises:
        InputError: A file of tokens or keys does not hold.
    """

    def __init__(self, config: GatewayConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._clients = None if config.client_tokens is None else TokenFile(config.client_tokens, clock)
        self._admins = None if config.admin_tokens is None else TokenFile(config.admin_tokens, clock)
        self._upstream = Upstream(config)
        backends = [Backend(spec, config.health, config.prefix_units) for spec in config.backends]
        self._dispatcher = Dispatcher(backends, config.queue, config.router)
        self._metrics = Metrics(self._dispatcher)
        self._steering = Steering(self._dispatcher, config)
        self._checks = HealthChecks(self._upstream, self._dispatcher, config.health)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Checks the health of backends while in here, and tidies up at the end."""
        async with self._upstream.running():
            checks = asyncio.create_task(self._checks.run())
            try:
                yield
            finally:
                self._steering.forget()
                checks.cancel()
                await asyncio.gather(checks, return_exceptions=True)

    def proxy(self, path: str) -> Proxy:
        """What serves a proxied path."""
        return Proxy(path, self._config, self._dispatcher, self._upstream, self._metrics, self._clients, self._clock)

    async def health(self, request: Request) -> Response:
        """`GET /health`: the gateway lives; whether all backends do, is told by the metrics."""
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        if self._clients is not None:
            self._clients.demand(authorization(request))
        return JSONResponse(await list_models(self._upstream, self._dispatcher, self._config.health.timeout_s))

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`: open where the API is, otherwise for clients and administrators."""
        if self._clients is not None:
            given = authorization(request)
            if self._admins is None or not self._admins.admits(given):
                self._clients.demand(given)
        return Response(self._metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def reading(self, request: Request) -> Response:
        """`GET /admin/reading`."""
        self._demand_admin(request)
        return JSONResponse(asdict(reading_of(self._dispatcher, self._metrics, self._clock())))

    async def steer(self, request: Request) -> Response:
        """`POST /admin/steer`."""
        self._demand_admin(request)
        client = Downstream(request.scope, request.receive, request._send)
        try:
            body = await client.body(min(STEER_BYTES, self._config.limits.body_bytes), self._config.timeouts.body_s)
        except ClientGoneError:
            return Response(status_code=204)
        self._steering.apply(Steer.of(body, self._dispatcher.backends))
        return JSONResponse(asdict(reading_of(self._dispatcher, self._metrics, self._clock())))

    def _demand_admin(self, request: Request) -> None:
        if self._admins is None:
            raise RefusalError(403, "admin_closed", "There is no administration: the gateway has no admin_tokens.")
        self._admins.demand(authorization(request))


def make_app(config: GatewayConfig, clock: Callable[[], float] = time.monotonic) -> Starlette:
    """The application.

    Args:
        config: The settings.
        clock: Monotonic time, seconds.

    Raises:
        InputError: A file of tokens or keys does not hold.
    """
    gateway = Gateway(config, clock)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = Starlette(
        routes=[
            *(Route(path, gateway.proxy(path), methods=["POST"]) for path in PROXIED),
            Route("/v1/models", gateway.models),
            Route("/health", gateway.health),
            Route("/metrics", gateway.metrics),
            Route("/admin/reading", gateway.reading),
            Route("/admin/steer", gateway.steer, methods=["POST"]),
        ],
        lifespan=lifespan,
        exception_handlers=HANDLERS,
    )
    app.router.redirect_slashes = False
    return app
