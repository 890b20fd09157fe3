"""The scheduler of one slot: vLLM's, as a list of running requests and a queue of waiting ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..kernels.state import Records
from .block_pool import BlockPool, Unit
from .request import Request


@dataclass(slots=True)
class Plan:
    """What one iteration does.

    Attributes:
        decodes: Requests that generate one token more.
        chunks: Requests of which a part of the prompt is computed, and how many tokens of it, in order of admission.
        admitted: Those that have just been admitted, and how many tokens they found cached.
        preempted: Those that have just lost their cache.
        gone: Those whose client had given up when they were considered.
        prefill_tokens: Tokens of all chunks.
    """

    decodes: list[Request]
    chunks: list[tuple[Request, int]] = field(default_factory=list)
    admitted: list[tuple[Request, int]] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)
    gone: list[Request] = field(default_factory=list)
    prefill_tokens: int = 0


class Scheduler:
    """Decides at each iteration which requests run, and which tokens of theirs are computed.

    Args:
        deployment: What the slot serves.
        unit_tokens: Tokens under one prefix hash, 0 without prefix caching.
    """

    def __init__(self, deployment: Records, unit_tokens: int) -> None:
        self._max_num_seqs = int(deployment["max_num_seqs"])
        self._max_batched_tokens = int(deployment["max_batched_tokens"])
        self._block_size = 1 << int(deployment["block_shift"])
        self._watermark = int(deployment["watermark"])
        self._by_priority = bool(deployment["by_priority"])
        self._unit_tokens = unit_tokens
        self.pool = BlockPool(int(deployment["kv_blocks"]), unit_tokens // self._block_size)
        self.running: list[Request] = []  # in order of admission, so that one whose prefill is partial is the last
        self.waiting: deque[Request] = deque()

    def __len__(self) -> int:
        """Requests here, running or waiting."""
        return len(self.running) + len(self.waiting)

    def add(self, request: Request) -> None:
        """A new request joins the queue: at its end, or at the end of its level."""
        if self._by_priority:
            self._insert(request, lambda other: other.level > request.level)
        else:
            self.waiting.append(request)

    def schedule(self, now_ps: int) -> Plan:
        """Plans the iteration that begins now and takes the blocks for it."""
        partial = self.running[-1] if self.running and self.running[-1].prefilling else None
        plan = Plan(self.running[:-1] if partial else self.running[:])
        self._schedule_decodes(plan)
        budget = self._max_batched_tokens - len(plan.decodes)
        if partial and partial not in plan.preempted:
            self._schedule_partial(plan, partial, budget)
        if self.waiting and not plan.preempted:
            self._schedule_waiting(plan, budget - plan.prefill_tokens, now_ps)
        return plan

    def finish(self, request: Request) -> None:
        """A running request leaves."""
        self.running.remove(request)
        self._free(request)

    def drop(self, request: Request) -> None:
        """A request leaves, running or waiting."""
        if request in self.running:
            self.finish(request)
        else:
            self.waiting.remove(request)

    def hit(self, request: Request) -> list[Unit]:
        """The leading units of its prompt that it would find cached; the last token it needs is always computed."""
        if not self._unit_tokens or request.transferred:
            return []
        most = (request.prompt + request.generated - 1) // self._unit_tokens
        return self.pool.find(request.hashes[:most])

    # ------------------------------------------------------------------------------------------ the parts of a plan

    def _schedule_decodes(self, plan: Plan) -> None:
        def in_need() -> list[Request]:
            return [request for request in plan.decodes if request.cached == request.blocks * self._block_size]

        while len(needy := in_need()) > self.pool.free:
            self._preempt(plan)
        for request in needy:
            self._grow(request, request.cached + 1)

    def _schedule_partial(self, plan: Plan, request: Request, budget: int) -> None:
        tokens = min(request.target - request.cached, budget)
        while self._blocks(request.cached + tokens) - request.blocks > self.pool.free:
            if self._preempt(plan) is request:
                return
        self._compute(plan, request, tokens)

    def _schedule_waiting(self, plan: Plan, budget: int, now_ps: int) -> None:
        # A prefill that remains partial has used the budget up, so that nobody is admitted behind it.
        while self.waiting and budget > 0 and len(self.running) < self._max_num_seqs:
            request = self.waiting[0]
            if request.impatient(now_ps):
                plan.gone.append(self.waiting.popleft())
                continue
            target = request.prompt + request.generated
            hit = self.hit(request)
            cached = request.prompt if request.transferred else len(hit) * self._unit_tokens
            tokens = min(target - cached, budget)
            held_by_others = sum(unit.blocks for unit in hit if unit.holders > 0)
            if self._blocks(cached + tokens) - held_by_others + self._watermark > self.pool.free:
                break
            self.waiting.popleft()
            self.running.append(request)
            self.pool.hold(hit)
            request.units, request.blocks = hit, sum(unit.blocks for unit in hit)
            request.target, request.cached = target, cached
            plan.admitted.append((request, cached))
            self._compute(plan, request, tokens)
            budget -= tokens

    def _compute(self, plan: Plan, request: Request, tokens: int) -> None:
        self._grow(request, request.cached + tokens)
        plan.chunks.append((request, tokens))
        plan.prefill_tokens += tokens

    # ------------------------------------------------------------------------------------------ blocks and preemption

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_size)

    def _grow(self, request: Request, tokens: int) -> None:
        """Takes the blocks that a request lacks for ``tokens``; full units of its prompt are put under their hash."""
        more = self._blocks(tokens) - request.blocks
        self.pool.take(more)
        request.blocks += more
        if self._unit_tokens:
            for prefix_hash in request.hashes[len(request.units) : tokens // self._unit_tokens]:
                request.units.append(self.pool.register(prefix_hash))

    def _free(self, request: Request) -> None:
        self.pool.give_back(request.blocks, request.units)
        request.give_up_cache()

    def _preempt(self, plan: Plan) -> Request:
        """The victim loses its blocks and waits again, to be computed anew."""
        victim = self.running[-1]
        if self._by_priority:
            victim = max(self.running, key=lambda r: (r.level, r.arrival_ps, r.row))
        self.finish(victim)
        victim.transferred = False
        if victim in plan.decodes:
            plan.decodes.remove(victim)
        plan.preempted.append(victim)
        self._put_back(victim)
        return victim

    def _put_back(self, request: Request) -> None:
        """A preempted request joins the queue: at its front, or in its level before those that arrived later."""
        if self._by_priority:
            key = (request.level, request.arrival_ps, request.row)
            self._insert(request, lambda other: (other.level, other.arrival_ps, other.row) > key)
        else:
            self.waiting.appendleft(request)

    def _insert(self, request: Request, behind: Callable[[Request], bool]) -> None:
        """Puts ``request`` into the queue, before the first one that is to be behind it."""
        place = next((i for i, other in enumerate(self.waiting) if behind(other)), len(self.waiting))
        self.waiting.insert(place, request)
