"""A plugin for the planner of NVIDIA Dynamo that proposes as many replicas as an llmcluster agent lets serve.

It is loaded into the planner (``planner.plugin_registration.in_process_plugins``); docs/plug-in.md says how.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from llmcluster_client import VLLM_AND_DCGM, Sidecar, readings

KEEP, SERVE = 0, 3
LOADING, SERVING = 1, 2
_log = logging.getLogger(__name__)


class LlmclusterPropose:
    """Proposes the number of replicas.

    Args:
        sidecar: Where the sidecar is.
        prometheus: Where Prometheus is.
        token_file: File with the sidecar's token.
        queries: PromQL by reading, in place of those for vLLM and DCGM.
        component: What is scaled: ``decode``, which is also the name where prefill and decode are one, or ``prefill``.
        timeout_s: How long to wait for each answer; the planner itself gives a plugin 5 s.
    """

    def __init__(
        self,
        sidecar: str,
        prometheus: str,
        token_file: str | None = None,
        queries: dict[str, str] | None = None,
        component: str = "decode",
        timeout_s: float = 2.0,
    ) -> None:
        self._sidecar = Sidecar(sidecar, token_file, timeout_s)
        self._prometheus, self._queries = prometheus, queries or VLLM_AND_DCGM
        self._component, self._timeout_s = component, timeout_s
        self._slots: list[str] | None = None

    async def Propose(self, request: Any) -> Any:  # noqa: N802 - the planner's own name
        """One tick of the planner: a number of replicas, or no opinion where nothing can be decided."""
        from dynamo.planner.plugins.types import (
            AcceptResult,
            ComponentTarget,
            OverrideResult,
            OverrideType,
            ProposeStageResponse,
        )

        observed = getattr(request.context, "observations", None)
        try:
            replicas = await asyncio.to_thread(self._replicas, getattr(observed, "traffic", None))
        except (OSError, ValueError, KeyError, TypeError) as fault:
            _log.warning("llmcluster has no opinion: %s", fault)
            replicas = None
        if replicas is None:
            return ProposeStageResponse(accept=AcceptResult())
        target = ComponentTarget(sub_component_type=self._component, replicas=replicas, type=OverrideType.SET)
        return ProposeStageResponse(override=OverrideResult(targets=[target], reason="llmcluster"))

    def _replicas(self, traffic: Any) -> int | None:
        if self._slots is None:
            self._slots = self._sidecar.spaces()["slots"]
        told = readings(self._prometheus, self._queries, self._slots, self._timeout_s)
        if traffic is not None and traffic.duration_s > 0:  # what the planner has counted itself
            told["arrivals_per_s"] = traffic.num_req / traffic.duration_s
            told["arriving_tokens_per_s"] = told["arrivals_per_s"] * traffic.isl
        told.setdefault("model", [0] * len(self._slots))
        targets = self._sidecar.decide(told)["lifecycle"]
        if targets is None:
            return None
        stays = [
            target == KEEP and now in (LOADING, SERVING) for target, now in zip(targets, told["status"], strict=True)
        ]
        return sum(target >= SERVE or stay for target, stay in zip(targets, stays, strict=True))
