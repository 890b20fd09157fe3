"""`GET /v1/models`: what the backends say of the models that clients may ask for, merged."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from .backends import Backend
from .dispatch import Dispatcher
from .upstream import Upstream


async def list_models(upstream: Upstream, dispatcher: Dispatcher, within_s: float) -> dict[str, Any]:
    """The list in OpenAI's shape: each model once, with what the first backend that knows it tells of it."""
    backends = list(dispatcher.backends.values())
    told = await asyncio.gather(*(_ask(upstream, backend, within_s) for backend in backends if backend.healthy))
    models: dict[str, dict[str, Any]] = {}
    for model, about in [*filter(None, told), *((backend.spec.model, {}) for backend in backends)]:
        models.setdefault(model, {"object": "model", "created": 0, "owned_by": "llmcluster", **about, "id": model})
    return {"object": "list", "data": list(models.values())}


async def _ask(upstream: Upstream, backend: Backend, within_s: float) -> tuple[str, dict[str, Any]] | None:
    try:
        content = json.loads(await upstream.look(backend, "/v1/models", within_s) or b"null")
    except (ValueError, RecursionError):
        return None
    entries = content.get("data") if isinstance(content, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("id") == backend.spec.upstream_model:
            return backend.spec.model, entry
    return None
