"""Claims of offline energy-optimal serving beside what is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...agents.offline_optimal.assignment import Assignment, Shares
from ..fidelity.source import Row
from ..results import Episode, Evaluation
from ..statistics import Interval, mean_interval, paired_interval
from .offline_front import Batch, Outcome, offline, one_hot, saving, zeta_for
from .offline_models import resampled_r2
from .suite import Claim, Verdict

F64 = NDArray[np.float64]

PUBLISHED_R2 = 0.96
GAP_LIMIT, TIME_LIMIT_S = 1e-3, 60.0
ENERGY, KEPT = "energy_per_output_token_j", "slo_attainment"


def column(episodes: Sequence[Episode], figure: str) -> F64:
    """A figure of the summaries, by episode."""
    return np.array([getattr(one.summary, figure) for one in episodes], np.float64)


def _verdict(share: float) -> Verdict:
    """Reproduced if all do, not if none does."""
    return "reproduced" if share >= 1 else "partly" if share > 0 else "not reproduced"


def r2_claim(
    rows: Sequence[Row], table: Sequence[Mapping[str, str | float]], quantity: str, form: str, rng: np.random.Generator
) -> Claim:
    """R² of one form for one quantity, of the worst model."""
    column = f"{quantity}, {form}, uncentred"
    values = {str(row["model"]): float(row[column]) for row in table}
    worst = min(values, key=lambda name: values[name])
    low, high = np.quantile(resampled_r2(rows, quantity, form, rng), (0.025, 0.975)) if rows else (np.nan, np.nan)
    short = [name for name, value in values.items() if value <= PUBLISHED_R2]
    why = f"lowest of {len(values)} models, {worst}; as the paper's code counts it, without centring"
    if short:
        why += f"; {', '.join(short)} fall short: without a KV cache the work grows with out², which the form lacks"
    return Claim(
        f"R² of the {quantity} model, {'the three terms of the paper' if form == 'paper' else form} (abstract)",
        f"> {PUBLISHED_R2:g}",
        Interval(values[worst], float(low), float(high)),
        "",
        _verdict(1 - len(short) / len(values)),
        why,
    )


def front_claims(
    batch: Batch, gamma: F64, loose: Shares, strict: Shares, rivals: Sequence[Outcome], rng: np.random.Generator
) -> list[Claim]:
    """What the assignment saves: at the accuracy of round robin, and at the same shares."""
    turns = one_hot(np.arange(len(batch)) % len(gamma), len(gamma))
    robin = next(one for one in rivals if one.policy == "round robin")
    zeta, equal = zeta_for(batch, robin.accuracy, loose)
    drawn = one_hot(rng.choice(len(gamma), len(batch), p=gamma), len(gamma))
    kept = offline(batch, 1.0, strict)
    claims = []
    for what, served, other, why in (
        (
            f"Energy saved at round robin's accuracy of {robin.accuracy:.1%}",
            equal.served,
            turns,
            f"ζ = {zeta:.2f}, found by bisection; resampled over queries",
        ),
        (
            "Energy saved at equal shares γ of the queries, against random assignment",
            kept.served,
            drawn,
            "ζ = 1; which query goes where, with as many to each model; resampled over queries",
        ),
    ):
        values = saving(batch, served, other, rng)
        interval = Interval(float(values.mean()), *map(float, np.quantile(values, (0.025, 0.975))))
        claims.append(
            Claim(
                f"{what} (case study)",
                "less energy than round robin and random, no figure in the abstract",
                interval,
                "share",
                "reproduced" if interval.low > 0 else "not reproduced",
                why,
            )
        )
    return claims


def optimiser_claims(solved: Sequence[Assignment], timed: Assignment) -> list[Claim]:
    """How near to the best, and how fast, the worst of the programs was."""
    gap, seconds = (max(getattr(one, name) for one in (*solved, timed)) for name in ("gap", "seconds"))
    nothing = float("nan")
    return [
        Claim(
            f"Gap to the bound of the linear program, {len(solved[0].served)} queries",
            f"at most {GAP_LIMIT:.1%} asked",
            Interval(gap, nothing, nothing),
            "share",
            "reproduced" if gap <= GAP_LIMIT else "not reproduced",
            f"worst of {len(solved) + 1} programs; where shares count queries the linear program is integral",
        ),
        Claim(
            f"Time to assign {len(solved[0].served)} queries",
            f"under {TIME_LIMIT_S:.0f} s asked",
            Interval(seconds, nothing, nothing),
            "s",
            "reproduced" if seconds < TIME_LIMIT_S else "not reproduced",
            f"longest of {len(solved) + 1} programs, that with shares of time: {timed.seconds:.1f} s",
        ),
    ]


def online_claims(found: Evaluation, name: str, others: Sequence[str], rng: np.random.Generator) -> list[Claim]:
    """What the online variant saves in the simulator against others, episode by episode on the same traffic."""
    mine, claims = found.of(name), []
    for other in others:
        theirs = found.of(other)
        saved = mean_interval(1 - column(mine, ENERGY) / column(theirs, ENERGY), rng)
        slo = paired_interval(column(mine, KEPT), column(theirs, KEPT), rng)
        reward = paired_interval([e.reward for e in mine], [e.reward for e in theirs], rng)
        claims.append(
            Claim(
                f"Online variant in {found.scenario}: energy per output token saved against {other}",
                "the paper has no online variant",
                saved,
                "share",
                "not reproduced" if saved.low <= 0 else "reproduced" if slo.high >= 0 else "partly",
                f"paired on the same traffic; share within SLO {_signed(slo, 3)}, reward {_signed(reward, 1)}: slots "
                "that sleep take long to wake",
            )
        )
    return claims


def _signed(interval: Interval, digits: int) -> str:
    return f"{interval.mean:+.{digits}f} [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"
