"""The part of docs/forecasting.md on real series, out of its scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..forecaster.base import TARGETS
from ..forecaster.models import LEARNED, NAIVE
from ..forecaster.weights import FORMAT

SKILLS, FORECASTS = "figures/forecast-skill.png", "figures/forecast-stretch.png"
GOAL = 0.10
GOAL_TEXT = f"{100 * GOAL:.0f} %"
BY_QUANTILES = "pinball_skill"
PAPER = {"point_30s": 7.97, "point_60s": 9.7}
"""MAE of the GRU in the forecasting paper, watts."""
Scores = Mapping[str, Any]
Row = Sequence[str]

SERIES = """\
`w1` and `w2` are one A100-80GB that serves Qwen3-8B under 16 minutes of BurstGPT arrivals each, `w1` busy and `w2` idle
nine tenths of the time. `falcon`, `mistral` and `mixtral` are sweeps over the length of one request after another: they
climb and repeat, and no arrival drives them. *r* is the correlation of seconds with those 30 s and 60 s later, and of
means over 30 s and 60 s with those of the window that follows; the half on which forecasts within a series are judged
stands behind the slash."""
EARLIER = (
    "The networks of this section were earlier ones, whose weights are refused today; it waits to be measured again. "
    "Series and naive models are as they were."
)
SLIPS = """\
The files of `w1` and `w2` have no time stamps. Readings are nominally 0.25 s apart, but their publisher's sampler is
known to have slipped: once in `w1`, by 1.2 s, and 23 times in `w2`, by 0.4 to 1.3 s, 8 s in all. Nothing in the files
shows where, so the reader takes readings as evenly spaced, says so in a warning, marks no gap and fills none in: a
minute of `w2` lasts half a second longer on average than it seems. This is left as noise. With stamps such slips would
be no gaps either, as a reading holds for up to 1.5 s."""
LIMITS = f"""\
A line through the past saves at most 1 − √(1 − r²) of the error of the mean: {GOAL_TEXT} take r = 0.44, and r = 0.1
saves half a percent. *In hindsight* is the line through the last second and its exponential means (what networks see
of power) with the lowest absolute error on the judged seconds themselves. It knows the answers, so no model that is
linear in these can pass it; a network can only by what is not linear, or by covariates. The bound is loose: eight
minutes hold eight means over a minute that do not overlap, and the line has six figures to fit them with; across
series it also knows the level of the one that nobody was fitted on. So autocorrelation alone explains the points within
a series; across series the loss is one of level: a busy series says nothing of how low an idle one lies, and linear
models that are fitted to it lose as much as networks do."""
JUDGED = f"""\
Skill is 1 − MAE over that of the best naive model on the same seconds, with 95 % intervals by a block bootstrap (blocks
of two minutes). Naive and learned models are each picked by the judged seconds themselves, the best of
{len(NAIVE)} and of {len(LEARNED)}. Within a series a model is fitted on all that came before each fold, from the half
on; an arrow says what it was fitted on, then what it was judged on. Figures of learned models are means over seeds."""
DATA = """\
Is it too little data? Below is the median skill of the learned models on the part that their weights were fitted on,
over the naive model that is best there, and after the arrow on what they were judged on. Much above nought before the
arrow and below it after would be noise learnt by heart. Below nought on both sides says that networks did not even fit
their own part better than a naive model: they begin as a mix of recent levels, a later stretch of the same series
decides when they stop, and what would have taken them away from that mix did not hold there."""
APART = """\
These do not compare. The paper's are of its own cluster, whose telemetry is not public, and watts measure how idle and
how steady a GPU is: the same models err by a fraction of a watt to tens of watts here, and whoever forecasts a GPU that
idles all day errs by nothing. Skill over the best naive model on the same seconds is what compares; the paper gives
none."""


def real_section(scores: Scores) -> str:
    """What was measured on real series, as :mod:`write_forecast_scores` keeps it."""
    cases = scores["cases"]
    lines = [
        "`python -m llmcluster.experiments.write_forecast_scores` measures this section anew.",
        "",
        *([EARLIER, ""] if scores.get("format") != FORMAT else []),
        SERIES,
        "",
        *_series(scores["series"]),
        SLIPS,
        "",
        "### What can be forecast",
        "",
        LIMITS,
        "",
        *_limits(cases),
        "### Who forecasts it",
        "",
        JUDGED,
        "",
        *_best(cases),
        *verdict(cases),
        "",
        *_families(cases),
        f"![Skill of models by case]({SKILLS})",
        "",
        f"![What came, and what was forecast]({FORECASTS})",
        "",
        "### Whether more data would help",
        "",
        DATA,
        "",
        *_own(cases),
        *_fits(cases),
        "### Beside the paper",
        "",
        *_paper(scores),
        APART,
        "",
        "### Every model",
        "",
        "Skill with its interval, MAE in watts, and the share within the 80 % interval; RMSE, pinball loss and skill "
        "by seed are in `docs/forecasting/real.json`.",
        "",
    ]
    for title, case in cases.items():
        lines += [
            f"**{title}** ({case['forecasts']:,} forecasts, seeds {_listed(case['seeds'])})",
            "",
            *_everyone(case),
        ]
    return "\n".join(lines)


def best_learned(results: Mapping[str, Any], target: str) -> str:
    """The learned model with the lowest error."""
    return min(LEARNED, key=lambda model: float(results[model][target]["mae_w"]))


def verdict(cases: Mapping[str, Any]) -> list[str]:
    """Whether learning paid, in sentences that hang on the figures."""
    places = [(case, target) for case in cases.values() for target in TARGETS]
    rows = [case["results"][best_learned(case["results"], t)][t] for case, t in places]
    sharpest = [
        min((case["results"][m][t] for m in LEARNED), key=lambda row: float(row["pinball_w"])) for case, t in places
    ]
    enough = [
        f"`{title}` ({_listed([t for t in TARGETS if _reaches(case, t)])})"
        for title, case in cases.items()
        if any(_reaches(case, t) for t in TARGETS)
    ]
    reached = "nowhere" if not enough else "on " + "; ".join(enough)
    bounds = [case["hindsight"][t] for case, t in places if case["hindsight"][t] is not None]
    counts = [sum(map(is_better, rows)), sum(map(is_worse, rows))]
    counts += [sum(judge(row, BY_QUANTILES) for row in sharpest) for judge in (is_better, is_worse)]
    return [
        f"Of {len(rows)} figures the best learned model is better than the best naive one in {counts[0]} and worse in "
        f"{counts[1]}, intervals apart from nought; the others cannot be told. The goal of {GOAL_TEXT}, interval "
        f"above nought, is reached {reached}. In {sum(bound < GOAL for bound in bounds)} of {len(bounds)} even the "
        f"line in hindsight stays below {GOAL_TEXT}. By the pinball loss of all three quantiles, not the median's "
        f"error, the best learned model is better than the naive one with the lowest in {counts[2]} and worse in "
        f"{counts[3]}."
    ]


def is_better(row: Mapping[str, Any], by: str = "skill") -> bool:
    """Whether a skill is above nought, its interval too."""
    low = row["intervals"][by][0]
    return low is not None and low > 0


def is_worse(row: Mapping[str, Any], by: str = "skill") -> bool:
    """Whether a skill is below nought, its interval too."""
    high = row["intervals"][by][1]
    return high is not None and high < 0


def _reaches(case: Scores, target: str) -> bool:
    row = case["results"][best_learned(case["results"], target)][target]
    return is_better(row) and row["skill"] >= GOAL


def _series(series: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, one in series.items():
        memory = [f"{one['memory'][t]:.2f} / {one['memory_of_second_half'][t]:.2f}" for t in TARGETS]
        size = f"{one['seconds']:,}" + (f" × {one['channels']}" if one["channels"] > 1 else "")
        rows.append([f"`{name}`", size, f"{one['mean_w']:.0f} ± {one['deviation_w']:.0f}", *memory])
    return table(["series", "seconds", "W", "r, 30 s", "r, 60 s", "r of means, 30 s", "r of means, 60 s"], rows)


def _limits(cases: Mapping[str, Any]) -> list[str]:
    rows = [[title, *(_percent(case["hindsight"][t]) for t in TARGETS)] for title, case in cases.items()]
    return table(["in hindsight", *TARGETS], rows)


def _best(cases: Mapping[str, Any]) -> list[str]:
    rows = []
    for title, case in cases.items():
        cells = []
        for target in TARGETS:
            model = best_learned(case["results"], target)
            row = case["results"][model][target]
            shown = f"{model} {_skill(row)}"
            cells.append(f"**{shown}**" if is_better(row) else shown)
            cells[-1] += f" over {case['best_naive'][target]} ({_watts(case['best_naive_mae_w'][target])})"
        rows.append([title, *cells])
    return table(["best learned over best naive", *TARGETS], rows)


def _families(cases: Mapping[str, Any]) -> list[str]:
    rows = []
    for model in (*NAIVE, *LEARNED):
        own = [(case["results"][model][t], case, t) for case in cases.values() for t in TARGETS]
        models = LEARNED if model in LEARNED else NAIVE
        first = sum(min(models, key=lambda m: case["results"][m][t]["mae_w"]) == model for _, case, t in own)
        skills = [row["skill"] for row, _, _ in own if row["skill"] is not None]
        rows.append(
            [
                model,
                str(first),
                str(sum(is_better(row) for row, _, _ in own)),
                str(sum(is_worse(row) for row, _, _ in own)),
                _percent(float(np.median(skills))),
            ]
        )
    return table(["model", "best of its kind", "better than the best naive", "worse", "median skill"], rows)


def _own(cases: Mapping[str, Any]) -> list[str]:
    rows = []
    for title, case in cases.items():
        cells = []
        for target in TARGETS:
            found = [case["results"][model][target] for model in LEARNED]
            own, judged = (_median(row[name] for row in found) for name in ("own_skill", "skill"))
            cells.append(f"{_percent(own)} → {_percent(judged)}")
        rows.append([title, *cells])
    return table(["fitted → judged", *TARGETS], rows)


def _fits(cases: Mapping[str, Any]) -> list[str]:
    """On how much of what they were fitted on learned models beat the naive ones, in a sentence."""
    places = [
        (case["results"][model][t]["own_skill"], case["results"][model][t]["skill"])
        for case in cases.values()
        for model in LEARNED
        for t in TARGETS
    ]
    known = [(own, judged) for own, judged in places if own is not None and judged is not None]
    fits = sum(own > 0 for own, _ in known)
    lost = sum(own > 0 >= judged for own, judged in known)
    return [
        f"Of {len(known)} figures of learned models {fits} are above nought on their own part, and {lost} of these no "
        "longer on what was judged.",
        "",
    ]


def _paper(scores: Scores) -> list[str]:
    rows = [["the paper's own cluster", *(f"{watts:g} W" for watts in PAPER.values()), "-", "-"]]
    for title in scores["series"]:
        case = scores["cases"][title]
        ours = [_watts(case["results"]["gru"][t]["mae_w"]) for t in PAPER]
        skills = [_percent(case["results"]["gru"][t]["skill"]) for t in PAPER]
        rows.append([f"`{title}`", *ours, *skills])
    return table(["GRU, within", "MAE, 30 s", "MAE, 60 s", "skill, 30 s", "skill, 60 s"], rows)


def _everyone(case: Scores) -> list[str]:
    rows = []
    for model, targets in case["results"].items():
        cells = [
            f"{_skill(targets[t])} {_watts(targets[t]['mae_w'])}, {targets[t]['coverage_80']:.0%}" for t in TARGETS
        ]
        rows.append([model, *cells])
    return table(["model", *TARGETS], rows)


def table(headings: Row, rows: Iterable[Row]) -> list[str]:
    """Lines of a Markdown table, and an empty one."""
    lines = [f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _skill(row: Mapping[str, Any]) -> str:
    low, high = row["intervals"]["skill"]
    return _percent(row["skill"]) + ("" if low is None or high is None else f" [{_percent(low)} … {_percent(high)}]")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:+.0%}".replace("%", " %").replace("-", "−")


def _watts(watts: float) -> str:
    return f"{watts:.2f} W" if watts < 10 else f"{watts:.1f} W"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
