"""A thousand prompts at 10 to 1000 requests a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ....simulator.blueprint import Blueprint
from ....simulator.catalog import Catalog
from ....simulator.errors import InputError
from ..csv_rows import Line
from ..source import Advance, Fitted, Row, unheard
from .nlr_lengths import FIRST, log_normal, shape_of, with_mean
from .nlr_node import ASSUMED, Run, Work, play
from .nlr_online_fit import fit
from .nlr_source import NlrSource, band, groups

FIRST_RATE = 10.0
"""Each sweep over the rates sends the same prompts and begins here; later runs find them in the KV cache."""

TEST_S = 1.6
"""The published scripts count power from the rise for the client's test request on, about so long before the others."""

MEASURED = {
    "tpot": "mean_tpot_ms",
    "tpot_median": "median_tpot_ms",
    "itl": "mean_itl_ms",
    "ttft": "median_ttft_ms",
    "duration": "duration",
    "throughput": "total_token_throughput",
    "power": "mean_power_w",
}


class NlrOnline(NlrSource):
    """Layout ``nlr-online``."""

    name = "nlr-online"
    title = "1,000 prompts at 10-1000 req/s, Llama-3.1-70B on 4 x H100, vLLM, late 2025 (NLR, arXiv 2604.07345)"
    quantities: Mapping[str, str] = {
        "tpot": "ms",
        "tpot_median": "ms",
        "itl": "ms",
        "ttft": "ms",
        "duration": "s",
        "throughput": "tokens/s",
        "power": "W",
    }
    assumed: Sequence[str] = (
        *ASSUMED,
        "Arrivals are evenly spaced (the client's burstiness was 100000).",
        "Mean prompt and output are the row's own; their spread is that of the data set, see nlr_lengths.",
        f"Any other data set is spread as {FIRST} is.",
        "All rates of a sweep send the same prompts: at 10 req/s they are new, at higher rates the KV cache has them.",
        f"Power is counted from a test request of 80 tokens, {TEST_S:g} s before the first, to the last token.",
    )
    columns = (
        "dataset",
        "output_len",
        "request_rate",
        "num_prompts",
        "completed",
        "total_input_tokens",
        "total_output_tokens",
        *MEASURED.values(),
    )

    def fit(self, rows: Sequence[Row], catalog: Catalog, rng: np.random.Generator, advance: Advance) -> Fitted:
        """Fits what a greedy choice takes, and a factor of this model's power; see :mod:`.nlr_online_fit`.

        Raises:
            InputError: There is no row.
        """
        if not rows:
            raise InputError(self.name, "no row to fit to", "Give at least one")
        seed = int(rng.integers(2**31))
        fitted = fit(
            rows, catalog, lambda known: self.simulate(rows, known, seed, unheard), tuple(self.quantities), rng
        )
        advance(len(rows))
        return fitted

    def _row(self, line: Line) -> Row:
        name, limit, rate = line.text("dataset"), line.whole("output_len"), line.positive("request_rate")
        prompts, completed = line.whole("num_prompts"), line.positive("completed")
        return Row(
            line.place,
            f"{name}, at most {limit} tokens",
            {quantity: line.positive(column) for quantity, column in MEASURED.items()},
            groups(dataset=name, output=f"at most {limit}", rate=band(rate, (10, 50, 100, 1000), "req/s")),
            {
                "dataset": name,
                "limit": limit,
                "rate": rate,
                "prompts": prompts,
                "prompt_mean": line.positive("total_input_tokens") / prompts,
                "output_mean": round(line.positive("total_output_tokens") / completed),
            },
        )

    def _play(self, blueprint: Blueprint, given: Mapping[str, Any], rng: np.random.Generator) -> Run:
        n, known = given["prompts"], shape_of(given["dataset"])
        work = Work(
            arrival_s=np.arange(n) / given["rate"],
            prompt_tokens=log_normal(given["prompt_mean"], n, rng),
            output_tokens=with_mean(given["output_mean"], given["limit"], known.output_quantiles, n, rng),
            cached=given["rate"] > FIRST_RATE,
            shared_blocks=known.shared_blocks,
            test_s=TEST_S,
        )
        return play(blueprint, work, rng)

    def _compared(self, run: Run) -> dict[str, float]:
        longer = run.steps > 0
        tpot_ms = 1e3 * run.decode_s[longer] / run.steps[longer]
        return {
            "tpot": float(tpot_ms.mean()),
            "tpot_median": float(np.median(tpot_ms)),
            "itl": 1e3 * float(run.decode_s.sum() / run.steps.sum()),
            "ttft": 1e3 * float(np.median(run.ttft_s)),
            "duration": run.duration_s,
            "throughput": run.tokens / run.duration_s,
        }
