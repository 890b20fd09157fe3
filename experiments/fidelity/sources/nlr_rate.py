"""Three minutes under a steady rate of 1 to 100 requests a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ....simulator.blueprint import Blueprint
from ..csv_rows import Line
from ..source import Row
from .nlr_lengths import dataset, log_normal, with_mean
from .nlr_node import ASSUMED, Run, Work, play
from .nlr_source import NlrSource, band, groups

LEAD_S = 40.0
"""The published scripts count power from one minute after the client's start on; it takes about 20 s to load."""


class NlrRate(NlrSource):
    """Layout ``nlr-rate``."""

    name = "nlr-rate"
    title = "steady 1-100 req/s, Llama-3.1-70B on 4 x H100, vLLM, January 2026 (NLR, arXiv 2604.07345)"
    quantities: Mapping[str, str] = {"power": "W"}
    assumed: Sequence[str] = (
        *ASSUMED,
        "Arrivals are evenly spaced (the client's burstiness was 100000), and all prompts are new to the KV cache.",
        "The file gives no lengths. Prompts are as in the runs of 1,000. InstructCoder's outputs are cut at 200 "
        "tokens, the client's default; those of the MLPerf set at the length of the reference answer, which the data "
        "do not tell: taken to leave 110 tokens in the mean, so that its power agrees with InstructCoder's.",
        f"Power is counted from {LEAD_S:g} s after the first request on.",
    )
    columns = ("dataset", "num_prompts", "request_rate", "duration_s", "mean_power_w")

    def _row(self, line: Line) -> Row:
        name, rate = line.text("dataset"), line.positive("request_rate")
        dataset(name, line.place)
        return Row(
            line.place,
            name,
            {"power": line.positive("mean_power_w")},
            groups(dataset=name, rate=band(rate, (10, 20, 30, 40, 100), "req/s")),
            {
                "dataset": name,
                "rate": rate,
                "prompts": line.whole("num_prompts"),
                "measured_s": line.positive("duration_s"),
            },
        )

    def _play(self, blueprint: Blueprint, given: Mapping[str, Any], rng: np.random.Generator) -> Run:
        known, rate = dataset(given["dataset"], self.name), given["rate"]
        end_s = LEAD_S + given["measured_s"]
        n = min(given["prompts"], int(np.ceil(rate * end_s)))
        work = Work(
            arrival_s=np.arange(n) / rate,
            prompt_tokens=log_normal(known.prompt_mean, n, rng),
            output_tokens=with_mean(known.default_output_mean, known.default_limit, known.output_quantiles, n, rng),
            cached=False,
            shared_blocks=known.shared_blocks,
        )
        return play(blueprint, work, rng, (LEAD_S, end_s))

    def _compared(self, run: Run) -> dict[str, float]:
        return {}
