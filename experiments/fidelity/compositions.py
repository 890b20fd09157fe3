"""What every iteration of a run computes, from the engine's own scheduler and without any clock.

Where all requests wait from the start, as in the runs of the ML.ENERGY benchmark, what the scheduler does does not
depend on how long iterations take. So it is found once for a run, and any cost of iterations can then be laid over it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...simulator.errors import InputError
from ...simulator.files import whole
from ...simulator.kernels.state import DEPLOYMENT
from ...simulator.performance import BLOCK_TOKENS
from ...simulator.reference.physics import Work
from ...simulator.reference.request import Request
from ...simulator.reference.scheduler import Plan, Scheduler
from .batches import Batches

RAMP_UP, STEADY, DRAIN = range(3)

GROWTH = 0.04
"""Iterations that only decode are put together until their contexts have grown by this share."""

MISSING = np.zeros(1, DEPLOYMENT)[0]


@dataclass(frozen=True)
class Run:
    """Requests that all wait from the start, and the engine that serves them.

    Attributes:
        prompt_tokens: Prompt lengths in the order of the queue.
        output_tokens: Output lengths.
        max_num_seqs: Most requests that run at once.
        kv_tokens: Tokens that fit into the KV cache.
        max_num_batched_tokens: Token budget of an iteration.
        repeats: How often the queue holds the same prompts, one time after the other; prefix caching finds those that
            have been computed and not been evicted since.
    """

    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]
    max_num_seqs: int
    kv_tokens: int
    max_num_batched_tokens: int = 8192
    repeats: int = 1

    @property
    def key(self) -> str:
        """Digest of all of it, such as for the name of a file."""
        figures = np.array([self.max_num_seqs, self.kv_tokens, self.max_num_batched_tokens, self.repeats], np.int64)
        lengths = np.array([self.prompt_tokens, self.output_tokens], np.int64)
        return hashlib.sha256(figures.tobytes() + lengths.tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Compositions:
    """The iterations of a run in order, like ones together; arrays of equal length.

    Attributes:
        count: Iterations that an entry stands for.
        tokens: Batched tokens of one of them.
        sequences: Requests in it, those of which a part of the prompt is computed included.
        decodes: Requests that generate one token more than they had.
        started: Requests whose prefill ends with it, which gives a token too.
        pairs: Pairs of a query token and a token that it attends to, the mean of the entry.
        read: Cached tokens read, the mean of the entry.
        phase: ``RAMP_UP`` until as many requests have started as can run at once; ``STEADY`` until no more than these
            and one are left; then ``DRAIN``. Without any that is steady, those before ``DRAIN`` are.
        preemptions: Requests that lost their cache in the whole run.
    """

    count: NDArray[np.int64]
    tokens: NDArray[np.int64]
    sequences: NDArray[np.int64]
    decodes: NDArray[np.int64]
    started: NDArray[np.int64]
    pairs: NDArray[np.float64]
    read: NDArray[np.float64]
    phase: NDArray[np.int64]
    preemptions: NDArray[np.int64]

    @property
    def batches(self) -> Batches:
        """One iteration of each entry."""
        return Batches(self.tokens, self.sequences, self.pairs, self.read)

    def save(self, path: Path) -> None:
        """Writes them as ``.npz``."""
        with whole(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Compositions:
        """Reads what :meth:`save` wrote.

        Raises:
            InputError: It is something else.
        """
        try:
            with np.load(path) as file:
                return cls(**{field.name: file[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError) as fault:
            raise InputError(str(path), f"holds no compositions ({fault})", "Delete it; it is made anew") from fault


def compositions_of(run: Run, folder: Path | None = None) -> Compositions:
    """The iterations of a run; from ``folder`` where they are there, else they are put there."""
    path = folder / f"{run.key}.npz" if folder else None
    if path and path.exists():
        return Compositions.load(path)
    found = compose(run)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
    return found


def compose(run: Run) -> Compositions:
    """Lets the scheduler serve a run.

    Raises:
        InputError: A request can never fit the KV cache.
    """
    return _Composer(run).serve()


class _Composer:
    """One run under way."""

    def __init__(self, run: Run) -> None:
        check(run)
        deployment = np.zeros(1, DEPLOYMENT)[0]
        deployment["max_num_seqs"] = run.max_num_seqs
        deployment["max_batched_tokens"] = run.max_num_batched_tokens
        deployment["kv_blocks"] = run.kv_tokens // BLOCK_TOKENS
        deployment["block_shift"] = BLOCK_TOKENS.bit_length() - 1
        self._scheduler = Scheduler(deployment, unit_tokens=BLOCK_TOKENS if run.repeats > 1 else 0)
        distinct = len(run.prompt_tokens) // run.repeats
        for row, (prompt, output) in enumerate(zip(run.prompt_tokens, run.output_tokens, strict=True)):
            hashes = _hashes(row % distinct, int(prompt)) if run.repeats > 1 else []
            self._scheduler.add(Request(row, MISSING, int(prompt), int(output), -1, 0, 0, -1, hashes))
        self._places = run.max_num_seqs
        self._left = len(run.prompt_tokens)
        self._started = self._preemptions = 0
        self._phase = RAMP_UP
        self._entries: list[tuple[int, int, int, int, int, float, float, int]] = []

    def serve(self) -> Compositions:
        """Runs to the end."""
        while self._left:
            plan = self._scheduler.schedule(0)
            self._preemptions += len(plan.preempted)
            started = self._land(plan)
            if not started and not plan.chunks and not plan.preempted:
                self._leap()
        return self._result()

    def _land(self, plan: Plan) -> int:
        """Records an iteration and ends it; returns how many requests ended their prefill, or the run, with it."""
        work = Work.of(plan)
        for request in plan.decodes:
            request.cached += 1
            request.generated += 1
        for request, tokens in plan.chunks:
            request.cached += tokens
        ready = [request for request, _ in plan.chunks if not request.prefilling]
        first = sum(request.generated == 0 for request in ready)
        for request in ready:
            request.generated += 1
        shape = (1, work.tokens, work.sequences, len(plan.decodes), len(ready))
        self._entries.append((*shape, float(work.pairs), float(work.read), self._phase))
        ended = [request for request in (*plan.decodes, *ready) if request.generated == request.output]
        for request in ended:
            self._scheduler.finish(request)
        self._started += first
        self._left -= len(ended)
        self._turn()
        return len(ready) + len(ended)

    def _turn(self) -> None:
        """Goes on to the next phase where it is time."""
        if self._phase == RAMP_UP and self._started >= self._places:
            self._phase = STEADY
        if self._left <= self._places + 1:
            self._phase = DRAIN

    def _leap(self) -> None:
        """Takes the iterations in which nothing but decoding happens: before one ends, or blocks run out."""
        running, pool = self._scheduler.running, self._scheduler.pool
        if not running:
            return
        most = min([request.output - request.generated for request in running]) - 1
        cached = sum([request.cached for request in running])
        size = len(running)
        while most > 0:
            steps = min(most, max(1, int(GROWTH * cached / size)))
            more = [-(-(request.cached + steps) // BLOCK_TOKENS) - request.blocks for request in running]
            if sum(more) > pool.free:
                return
            pool.take(sum(more))
            for request, blocks in zip(running, more, strict=True):
                request.blocks += blocks
                request.cached += steps
                request.generated += steps
            # The j-th reads what was cached before, and its own token.
            read = cached + size * (steps + 1) / 2
            self._entries.append((steps, size, size, size, 0, read, read, self._phase))
            cached += size * steps
            most -= steps

    def _result(self) -> Compositions:
        count, tokens, sequences, decodes, started, pairs, read, phases = zip(*self._entries, strict=True)
        phase = np.array(phases, np.int64)
        if STEADY not in phase:
            phase[phase == RAMP_UP] = STEADY
        return Compositions(
            count=np.array(count, np.int64),
            tokens=np.array(tokens, np.int64),
            sequences=np.array(sequences, np.int64),
            decodes=np.array(decodes, np.int64),
            started=np.array(started, np.int64),
            pairs=np.array(pairs, np.float64),
            read=np.array(read, np.float64),
            phase=phase,
            preemptions=np.array(self._preemptions),
        )


def _hashes(number: int, tokens: int) -> list[int]:
    """Different ones for the full blocks of each of the prompts."""
    return [number << 32 | block for block in range(tokens // BLOCK_TOKENS)]


def check(run: Run) -> None:
    """Refuses a run that no engine could serve to its end.

    Raises:
        InputError: It is one.
    """
    lengths = np.array([run.prompt_tokens, run.output_tokens])
    if lengths.size == 0 or lengths.min() < 1:
        raise InputError(
            "run", "a prompt or an output is empty, or there is no request", "Give at least one token each"
        )
    if run.max_num_batched_tokens <= run.max_num_seqs:
        problem = f"{run.max_num_batched_tokens} does not exceed max_num_seqs {run.max_num_seqs}"
        raise InputError("max_num_batched_tokens", problem, "Raise the one or lower the other")
    if lengths.shape[1] < run.max_num_seqs + 2:
        problem = f"{lengths.shape[1]} requests keep {run.max_num_seqs} places full at no time"
        raise InputError("run", problem, "Send more")
    longest = int(lengths.sum(axis=0).max())
    if longest > run.kv_tokens // BLOCK_TOKENS * BLOCK_TOKENS:
        problem = f"a request of {longest} tokens does not fit {run.kv_tokens} tokens of KV cache"
        raise InputError("run", problem, "Give a larger cache or shorter requests")
