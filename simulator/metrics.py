"""What became of the requests, and the summary of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cluster import Cluster
from .kernels.state import FINISHED, LOST, PENDING, REJECTED, TIMED_OUT, Records
from .units import J_PER_KWH, PS_PER_S

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, eq=False)
class SloLimits:
    """Limits of each SLO class, by its number.

    Attributes:
        ttft_ps: Time to first token at most, int64 picoseconds.
        tpot_ps: Mean time per output token after the first at most, int64 picoseconds.
    """

    ttft_ps: NDArray[np.int64]
    tpot_ps: NDArray[np.int64]


def within(requests: Records, slo_class: NDArray[Any], limits: SloLimits) -> NDArray[np.bool_]:
    """Whether each of the engine's records finished within both limits of its class."""
    first, last = requests["first_token_ps"], requests["finish_ps"]
    in_ttft = first - requests["arrival_ps"] <= limits.ttft_ps[slo_class]
    in_tpot = last - first <= limits.tpot_ps[slo_class] * (requests["output"] - 1)
    return np.asarray((requests["status"] == FINISHED) & in_ttft & in_tpot)


def met_slo(cluster: Cluster, rows: NDArray[np.int64], limits: SloLimits) -> NDArray[np.bool_]:
    """Whether each of ``rows`` finished within both limits of its class."""
    return within(cluster.engine.requests[rows], cluster.requests.slo_class[rows], limits)


def _sent(requests: Records) -> NDArray[np.bool_]:
    """Which requests have reached the cluster: a closed loop's next one has not, whatever its earliest arrival.

    One that timed out and whose client is about to try again has.
    """
    return np.asarray((requests["status"] != PENDING) | (requests["attempts"] > 0))


def overdue(cluster: Cluster, limits: SloLimits) -> int:
    """Requests that have arrived, have had no token yet and are past their TTFT limit."""
    requests = cluster.engine.requests[: cluster.arrived]
    waiting = _sent(requests) & (requests["first_token_ps"] < 0) & (requests["finish_ps"] < 0)
    late = cluster.now_ps - requests["arrival_ps"] > limits.ttft_ps[cluster.requests.slo_class[: cluster.arrived]]
    return int(np.count_nonzero(waiting & late))


@dataclass(frozen=True)
class Latencies:
    """Percentiles of one latency, seconds; ``nan`` where no request counts."""

    p50: float
    p90: float
    p99: float
    mean: float

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Latencies:
        """Of a sample."""
        if not len(seconds):
            return cls(float("nan"), float("nan"), float("nan"), float("nan"))
        p50, p90, p99 = np.percentile(seconds, PERCENTILES).tolist()
        return cls(p50, p90, p99, float(seconds.mean()))


@dataclass(frozen=True)
class Summary:
    """Results of a run. Requests are counted by arrival after the warm-up, energy and power by the second after it.

    Those completed, rejected, timed out, failed and unfinished are all the requests.

    Attributes:
        requests: Requests counted.
        requests_completed: Those that got all their tokens.
        requests_rejected: Those too long for any slot.
        requests_timed_out: Those whose client gave up.
        requests_failed: Those that were lost with a slot that failed.
        requests_unfinished: Those still there at the end.
        preemptions: Preemptions of the counted requests.
        prompt_tokens: Prompt tokens of the completed requests.
        output_tokens: Output tokens of the completed requests.
        simulated_s: Simulated time after the warm-up.
        energy_j: GPU energy.
        energy_per_output_token_j: GPU energy per output token generated in that time.
        mean_power_w: Mean GPU power.
        peak_power_w: Highest mean of one second.
        goodput_tokens_per_s: Output tokens of requests that met their SLO, per second.
        slo_attainment: Share of the requests that met their SLO; all that did not complete missed it.
        over_budget_s: Seconds above the power budget.
        over_budget_j: Energy above the power budget.
        over_rows_s: Seconds in which a row was above its power limit.
        over_rows_j: Energy above the rows' power limits.
        energy_cost: Price of the energy; ``nan`` where it has none.
        carbon_g: Its CO₂, grams; ``nan`` where that is not known.
        throttle_events: Thermal throttle events, from the start of the run.
        throttled_s: Seconds of slots that were throttled by heat.
        braked_s: Seconds of slots under a power brake.
        trips: Breakers that opened.
        sheds: Servers that the site switched off.
        starts: Loads and wakes, from the start of the run.
        ttft_s: Time to first token.
        tpot_s: Time per output token after the first, of requests with at least two.
        e2e_s: Time from arrival to the last token.
        quality: Mean published score of the models that answered the completed requests, 0 to 1; ``nan`` where one of
            them has none.
    """

    requests: int
    requests_completed: int
    requests_rejected: int
    requests_timed_out: int
    requests_failed: int
    requests_unfinished: int
    preemptions: int
    prompt_tokens: int
    output_tokens: int
    simulated_s: float
    energy_j: float
    energy_per_output_token_j: float
    mean_power_w: float
    peak_power_w: float
    goodput_tokens_per_s: float
    slo_attainment: float
    over_budget_s: float
    over_budget_j: float
    over_rows_s: float
    over_rows_j: float
    energy_cost: float
    carbon_g: float
    throttle_events: int
    throttled_s: float
    braked_s: float
    trips: int
    sheds: int
    starts: int
    ttft_s: Latencies
    tpot_s: Latencies
    e2e_s: Latencies
    quality: float


def _billed(power_w: NDArray[np.float64], per_kwh: NDArray[np.float64] | None, first_s: int) -> float:
    """Energy times what a kilowatt-hour of it costs in each second from ``first_s`` on."""
    if per_kwh is None:
        return float("nan")
    return float(power_w @ per_kwh[first_s : first_s + len(power_w)]) / J_PER_KWH


def _quality(cluster: Cluster, done: Records) -> float:
    """Mean score of the models that answered, each slot having held one after the other."""
    held = cluster.blueprint.initial[done["slot"]]
    for load in cluster.lifecycle.loads:
        held[(done["slot"] == load.slot) & (done["finish_ps"] > load.time_ps)] = load.deployment
    return float(cluster.blueprint.quality[held].mean()) if len(done) else float("nan")


def _throttled(cluster: Cluster) -> NDArray[np.bool_]:
    """Whether heat throttled each slot at the end of each second, (seconds, R), by the record of temperatures."""
    temperature_c = cluster.history.column("temperature_c")
    own = cluster.engine.deployments[cluster.engine.slots["deployment"]]  # one GPU, so one threshold, for each slot
    hot, cool = temperature_c >= own["throttle_c"], temperature_c <= own["resume_c"]
    # In between it stays as it was at the last second that was either.
    second = np.arange(1, len(temperature_c) + 1)[:, None]
    last = np.maximum.accumulate(np.where(hot | cool, second, 0), axis=0) - 1
    throttled = np.take_along_axis(hot, np.maximum(last, 0), axis=0)
    return np.asarray(throttled & (last >= 0))


def summarize(
    cluster: Cluster,
    limits: SloLimits,
    budget_w: NDArray[np.float64] | None = None,
    warmup_s: int = 0,
    until_s: int | None = None,
    *,
    over_rows_w: NDArray[np.float64] | None = None,
    price_per_kwh: NDArray[np.float64] | None = None,
    carbon_g_per_kwh: NDArray[np.float64] | None = None,
) -> Summary:
    """Summarises a run.

    Args:
        cluster: The cluster at the end of the run.
        limits: SLO limits by class.
        budget_w: Budget of each second since the start, watts; endless by default.
        warmup_s: Leaves out the seconds, and the requests that arrive, before.
        until_s: Leaves out the seconds, and the requests that arrive, from here on: a queue that is drained after the
            horizon settles what became of its requests, and counts for nothing else. All by default.
        over_rows_w: By how much each row with a power limit exceeded it in each second, watts (seconds, rows).
        price_per_kwh: Price of electricity in each second.
        carbon_g_per_kwh: Its carbon intensity in each second, grams.

    Returns:
        The summary.
    """
    all_rows = cluster.engine.requests
    in_time = all_rows["arrival_ps"] >= warmup_s * PS_PER_S
    if until_s is not None:
        in_time &= all_rows["arrival_ps"] < until_s * PS_PER_S
    rows = np.flatnonzero(in_time & _sent(all_rows))
    requests = all_rows[rows]
    done = requests[requests["status"] == FINISHED]
    met = met_slo(cluster, rows, limits)
    power_w = cluster.history.column("energy_j")[warmup_s:until_s].sum(axis=1)
    generated = int(cluster.history.column("output_tokens")[warmup_s:until_s].sum())
    over_w = np.zeros(1) if budget_w is None else (power_w - budget_w[warmup_s : warmup_s + len(power_w)]).clip(min=0)
    over_rows_w = np.zeros((1, 0)) if over_rows_w is None else over_rows_w[warmup_s:until_s]
    seconds = max(len(power_w), 1)
    tokens = int(done["output"].sum())
    energy_j = float(power_w.sum())
    several = done[done["output"] > 1]
    tally = cluster.protection.tally(warmup_s, warmup_s + len(power_w))

    def count(status: int) -> int:
        return int(np.count_nonzero(requests["status"] == status))

    return Summary(
        requests=len(rows),
        requests_completed=len(done),
        requests_rejected=count(REJECTED),
        requests_timed_out=count(TIMED_OUT),
        requests_failed=count(LOST),
        requests_unfinished=int(np.count_nonzero(requests["finish_ps"] < 0)),
        preemptions=int(requests["preemptions"].sum()),
        prompt_tokens=int(done["prompt"].sum()),
        output_tokens=tokens,
        simulated_s=float(len(power_w)),
        energy_j=energy_j,
        energy_per_output_token_j=energy_j / generated if generated else float("nan"),
        mean_power_w=energy_j / seconds,
        peak_power_w=float(power_w.max(initial=0.0)),
        goodput_tokens_per_s=float(requests["output"][met].sum()) / seconds,
        slo_attainment=float(met.mean()) if len(rows) else float("nan"),
        over_budget_s=float(np.count_nonzero(over_w > 0)),
        over_budget_j=float(over_w.sum()),
        over_rows_s=float(np.count_nonzero(over_rows_w.any(axis=1))),
        over_rows_j=float(over_rows_w.sum()),
        energy_cost=_billed(power_w, price_per_kwh, warmup_s),
        carbon_g=_billed(power_w, carbon_g_per_kwh, warmup_s),
        throttle_events=int(cluster.engine.slots["throttle_events"].sum()),
        throttled_s=float(np.count_nonzero(_throttled(cluster)[warmup_s:until_s])),
        braked_s=float(tally.braked_s),
        trips=tally.trips,
        sheds=tally.sheds,
        starts=cluster.lifecycle.starts,
        ttft_s=Latencies.of((done["first_token_ps"] - done["arrival_ps"]) / PS_PER_S),
        tpot_s=Latencies.of((several["finish_ps"] - several["first_token_ps"]) / PS_PER_S / (several["output"] - 1)),
        e2e_s=Latencies.of((done["finish_ps"] - done["arrival_ps"]) / PS_PER_S),
        quality=_quality(cluster, done),
    )
