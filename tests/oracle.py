"""A slow simulator of one slot, one iteration at a time, that the compiled engine must equal to the picosecond.

It follows vLLM's unified scheduler rather than the engine: every running request has known tokens and computed ones,
and is scheduled in order of admission for what it lacks. Nothing here leaps, sums in closed form or keeps a heap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from llmcluster.simulator.kernels.prefix import clear_cache
from llmcluster.simulator.kernels.state import (
    BIN_PS,
    C_COUPLED,
    C_ROUTER,
    DEPLOYMENT,
    FINISHED,
    PENDING,
    REJECTED,
    REQUEST,
    SERVING,
    TIMED_OUT,
    Engine,
    Limits,
    Tables,
    allocate,
)


@dataclass(frozen=True)
class Table:
    """One deployment as plain numbers; see ``kernels/tables.py``."""

    fixed_ps: tuple[int, ...]
    compute_ps: tuple[int, ...]
    memory_ps: tuple[int, ...]
    kv_read_ps: int = 0
    attention_ps: int = 0
    kv_blocks: int = 1000
    block_size: int = 16
    max_model_len: int = 100_000
    max_num_seqs: int = 8
    max_batched_tokens: int = 64
    off_w: float = 10.0
    idle_w: float = 50.0
    active_w: float = 100.0
    compute_w: float = 200.0
    memory_w: float = 50.0
    clock: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    scale: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    resistance: tuple[float, float] = (0.03, 0.02)
    decay: tuple[float, float] = (0.5, 0.9)
    throttle_c: float = 1000.0
    resume_c: float = 900.0
    inlet_c: float = 25.0
    averaging: bool = True

    @classmethod
    def linear(cls, fixed: int, compute: int, memory: int, memory_each: int = 0, **other: object) -> Table:
        """Fixed time, compute per token, memory per iteration and token, all in picoseconds."""
        tokens = range(int(other.get("max_batched_tokens", 64)) + 1)  # type: ignore[call-overload]
        return cls(
            tuple(fixed for _ in tokens),
            tuple(compute * t for t in tokens),
            tuple(memory + memory_each * t for t in tokens),
            **other,  # type: ignore[arg-type]
        )

    @property
    def full_power_w(self) -> float:
        return self.idle_w + self.active_w + self.compute_w + self.memory_w


@dataclass(eq=False)
class Job:
    """One request and what becomes of it."""

    arrival: int
    prompt: int
    output: int
    timeout: int = -1
    think: int = -1
    follower: int = -1
    status: int = PENDING
    admit: int = -1
    first: int = -1
    finish: int = -1
    preemptions: int = 0
    generated: int = 0
    computed: int = 0
    target: int = 0

    @property
    def prefilling(self) -> bool:
        return self.computed < self.target


@dataclass
class Second:
    """One bin."""

    energy_j: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    temperature_c: float = 0.0
    closed: bool = False


@dataclass
class Chunk:
    """What one running request does in an iteration."""

    job: Job
    tokens: int
    prefill: bool
    read: int
    pairs: int


@dataclass
class Oracle:
    """One serving slot. ``caps`` are (time, watts) in order of time; the first is the one at the start."""

    table: Table
    jobs: list[Job]
    caps: list[tuple[int, float]]
    queue: list[Job] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    seconds: dict[int, Second] = field(default_factory=dict)
    left: list[int] = field(default_factory=list)
    now: int = 0
    step: int = 0
    governed: bool = False
    throttled: bool = False
    throttle_events: int = 0
    clock_limit: int = -1

    def __post_init__(self) -> None:
        self.free = self.table.kv_blocks
        self.rise = [0.0, 0.0]
        self.cap = math.inf
        self.limit = len(self.table.clock) - 1 if self.clock_limit < 0 else self.clock_limit
        # Due at a time; at the same time those that the workload holds come before those that a finish released.
        self.due = [(job.arrival, 0, i) for i, job in enumerate(self.jobs) if job.think < 0]

    def run(self, until: int) -> Oracle:
        """Launches every iteration that begins before ``until``."""
        while self.now < until:
            self.take_caps()
            self.take_arrivals()
            if not self.queue and not self.running:
                ahead = [t for t, _, _ in self.due] + [t for t, _ in self.caps]
                stop = min([until, *[t for t in ahead if t > self.now]])
                self.account(stop, self.table.idle_w)
                self.now = stop
                continue
            chunks = self.schedule()
            assert chunks or not (self.queue or self.running), "a request that fits can always be scheduled"
            if chunks:
                self.iterate(chunks)
        return self

    def take_caps(self) -> None:
        while self.caps and self.caps[0][0] <= self.now:
            self.cap = self.caps.pop(0)[1]
            self.governed = False

    def take_arrivals(self) -> None:
        while self.due and min(self.due)[0] <= self.now:
            time, _, row = min(self.due)
            self.due.remove(min(self.due))
            job = self.jobs[row]
            job.arrival = time
            tokens = job.prompt + job.output
            if tokens > self.table.max_model_len or tokens > self.table.kv_blocks * self.table.block_size:
                self.leave(job, REJECTED, time)
            else:
                self.queue.append(job)

    def leave(self, job: Job, status: int, time: int) -> None:
        job.status, job.finish = status, time
        self.left.append(self.jobs.index(job))
        if job.follower >= 0 and self.jobs[job.follower].think >= 0:
            after = self.jobs[job.follower]
            self.due.append((max(time + max(after.think, 1), after.arrival), 1, job.follower))

    # ------------------------------------------------------------------------------------------------ scheduling

    def blocks(self, tokens: int) -> int:
        return math.ceil(tokens / self.table.block_size)

    def preempt(self) -> None:
        """Sends the newest running request back to the head of the queue."""
        job = self.running.pop()
        self.free += self.blocks(job.computed)
        self.governed = False
        job.computed = job.target = 0
        job.preemptions += 1
        self.queue.insert(0, job)

    def schedule(self) -> list[Chunk]:
        """The next iteration: running requests in order of admission, then the queue's head, first come first served.

        Blocks of a chunk are taken at once; its tokens count as computed only when the iteration ends.
        """
        budget, preempted = self.table.max_batched_tokens, False
        chunks: list[Chunk] = []
        for job in list(self.running):
            tokens = min(job.prompt + job.generated - job.computed, budget)
            more = self.blocks(job.computed + tokens) - self.blocks(job.computed)
            while job in self.running and more > self.free:
                self.preempt()
                preempted = True
            if job in self.running:
                budget -= tokens
                self.free -= more
                chunks.append(self.chunk(job, tokens))
        while not preempted and self.queue and budget > 0 and len(self.running) < self.table.max_num_seqs:
            job = self.queue[0]
            if job.timeout >= 0 and job.generated == 0 and self.now > job.arrival + job.timeout:
                self.leave(self.queue.pop(0), TIMED_OUT, self.now)
                continue
            tokens = min(job.prompt + job.generated, budget)
            if self.blocks(tokens) > self.free:
                break
            self.running.append(self.queue.pop(0))
            self.free -= self.blocks(tokens)
            budget -= tokens
            job.target = job.prompt + job.generated
            job.admit = self.now if job.admit < 0 else job.admit
            chunks.append(self.chunk(job, tokens))
        return chunks

    @staticmethod
    def chunk(job: Job, tokens: int) -> Chunk:
        done = job.computed
        pairs = sum(range(done + 1, done + tokens + 1))
        # A prefill reads what earlier chunks left in the cache; a decode also its own new token.
        return Chunk(job, tokens, job.prefilling, done if job.prefilling else done + 1, pairs)

    # -------------------------------------------------------------------------------------------------- execution

    def iterate(self, chunks: list[Chunk]) -> None:
        table = self.table
        tokens = sum(c.tokens for c in chunks)
        pairs, read = sum(c.pairs for c in chunks), sum(c.read for c in chunks)
        prefill = sum(c.tokens for c in chunks if c.prefill)
        fixed = table.fixed_ps[tokens]
        compute = table.compute_ps[tokens] + table.attention_ps * pairs
        memory = table.memory_ps[tokens] + table.kv_read_ps * read
        if prefill or not self.governed:
            self.step = self.govern(fixed, compute, memory)
            self.governed = True
        clock = table.clock[self.step]
        if prefill:
            compute = round(compute / clock)
        else:
            compute = round(table.compute_ps[tokens] / clock) + round(table.attention_ps / clock) * pairs
        total = fixed + max(compute, memory)
        end = self.now + total
        self.account(end, self.power(self.step, total, compute, memory))
        self.now = end
        second = self.second((end - 1) // BIN_PS)
        second.prompt_tokens += prefill
        if prefill:
            self.governed = False
        for chunk in chunks:
            job = chunk.job
            job.computed += chunk.tokens
            if job.computed < job.prompt + job.generated:
                continue
            job.generated += 1
            second.output_tokens += 1
            job.first = end if job.first < 0 else job.first
            if job.generated == job.output:
                self.running.remove(job)
                self.free += self.blocks(job.computed)
                self.governed = False
                self.leave(job, FINISHED, end)

    def govern(self, fixed: int, compute: int, memory: int) -> int:
        """The highest step that keeps under the cap, else the lowest of all."""
        steps = len(self.table.clock)
        top = min(self.limit, steps // 4) if self.throttled else self.limit
        for step in range(top, 0, -1):
            busy = round(compute / self.table.clock[step])
            running, computing, reading = self.watts(step)
            total = fixed + max(busy, memory)
            if running * total + computing * busy + reading * memory <= math.floor(self.cap * 100) * total:
                return step
        return 0

    def watts(self, step: int) -> tuple[int, int, int]:
        """Centiwatts while an iteration runs, and more at full use of compute and of memory."""
        table = self.table
        running = round((table.idle_w + table.scale[step] * table.active_w) * 100)
        return running, round(table.scale[step] * table.compute_w * 100), round(table.memory_w * 100)

    def power(self, step: int, total: int, compute: int, memory: int) -> float:
        running, computing, reading = self.watts(step)
        return (running * total + computing * compute + reading * memory) / total / 100

    # --------------------------------------------------------------------------------------------------- seconds

    def second(self, number: int) -> Second:
        return self.seconds.setdefault(number, Second())

    def account(self, stop: int, power_w: float) -> None:
        for number in range(self.now // BIN_PS, (stop - 1) // BIN_PS + 1):
            begin, end = max(self.now, number * BIN_PS), min(stop, (number + 1) * BIN_PS)
            self.second(number).energy_j += power_w * (end - begin) / 1e12
            if end == (number + 1) * BIN_PS:
                self.close(self.second(number))

    def close(self, second: Second) -> None:
        """The end of a second: heat, throttle, and the governor is asked again."""
        table = self.table
        assert not second.closed, "a second ends once"
        for pole in range(2):
            settled = table.resistance[pole] * second.energy_j
            self.rise[pole] = settled + (self.rise[pole] - settled) * table.decay[pole]
        second.temperature_c = table.inlet_c + sum(self.rise)
        if not self.throttled and second.temperature_c >= table.throttle_c:
            self.throttled = True
            self.throttle_events += 1
        elif self.throttled and second.temperature_c <= table.resume_c:
            self.throttled = False
        self.governed = False
        second.closed = True


def compiled(tables: Table | list[Table], jobs: list[Job], router: int = 1, cap_w: float = 1e4) -> Engine:
    """The compiled engine at time zero with a serving slot per table; layout only, no behaviour.

    The tables may differ in everything but the budget of tokens, the block size and the length of the ladder.
    """
    tables = tables if isinstance(tables, list) else [tables]
    records = np.zeros(len(tables), DEPLOYMENT)
    for name in DEPLOYMENT.names or ():
        if hasattr(tables[0], name):
            records[name] = [getattr(t, name) for t in tables]
    for name in ("off", "idle", "memory"):
        records[f"{name}_cw"] = [round(getattr(t, f"{name}_w") * 100) for t in tables]
    records["gpus"] = 1
    records["block_shift"] = tables[0].block_size.bit_length() - 1
    records["max_tokens"] = [min(t.max_model_len, t.kv_blocks * t.block_size) for t in tables]
    cost = np.array([(t.fixed_ps, t.compute_ps, t.memory_ps) for t in tables], np.int64)
    ladder = np.array([(t.clock, t.scale) for t in tables])
    running = np.array([[t.idle_w + f * t.active_w for f in t.scale] for t in tables])
    computing = np.array([[f * t.compute_w for f in t.scale] for t in tables])
    watt = np.rint(np.stack([running, computing], axis=1) * 100).astype(np.int64)
    thermal = np.array([(t.resistance, t.decay) for t in tables])
    rows = np.zeros(len(jobs), REQUEST)
    for name in ("slot", "admit_ps", "first_token_ps", "finish_ps", "link", "model"):
        rows[name] = -1
    for name, ours in (("arrival_ps", "arrival"), ("timeout_ps", "timeout"), ("think_ps", "think")):
        rows[name] = [getattr(job, ours) for job in jobs]
    rows["sent_ps"] = rows["arrival_ps"]
    for name in ("prompt", "output", "follower"):
        rows[name] = [getattr(job, name) for job in jobs]
    limits = Limits(max(t.max_num_seqs for t in tables), tables[0].block_size)
    hashes = np.zeros(1, np.int64)
    engine = allocate(Tables(records, cost, ladder, watt, thermal), rows, hashes, len(tables), limits)
    engine.cursor[C_ROUTER] = router
    engine.cursor[C_COUPLED] = any(job.think >= 0 for job in jobs)
    slots = engine.slots
    slots["status"] = SERVING
    slots["deployment"] = range(len(tables))
    slots["inlet_c"] = [t.inlet_c for t in tables]
    slots["cap_w"] = cap_w
    for slot in range(len(tables)):
        clear_cache(engine, slot)
    return engine
