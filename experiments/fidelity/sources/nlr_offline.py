"""Batches of 25 to 1000 prompts, all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ....simulator.blueprint import Blueprint
from ....simulator.errors import InputError
from ..csv_rows import Line
from ..source import Row
from .nlr_lengths import log_normal, normal
from .nlr_node import ASSUMED, Run, Work, play
from .nlr_source import NlrSource, band, groups

PROMPT_MEAN, OUTPUT_MEAN, OUTPUT_SD = 120.0, 760.0, 320.0


class NlrOffline(NlrSource):
    """Layout ``nlr-offline``."""

    name = "nlr-offline"
    title = "offline batches of 25-1000, Llama-3.1-70B on 4 x H100, vLLM, September 2025 (NLR, arXiv 2604.07345)"
    quantities: Mapping[str, str] = {"elapsed": "s", "power": "W"}
    assumed: Sequence[str] = (
        *ASSUMED,
        f"The file gives no lengths. Prompts of {PROMPT_MEAN:g} tokens in the mean; outputs, before they are cut, of "
        f"{OUTPUT_MEAN:g} +- {OUTPUT_SD:g}: from what repeats save, from the batches at which the KV cache no longer "
        "holds all requests (about 740 cut at 512 tokens, 540 at 1024), and so that elapsed times agree with iteration "
        "times that suit the online runs.",
        "All requests of a batch arrive at once. Repeats 1 and 2 send the prompts of repeat 0, which the KV cache has.",
        "Elapsed is from the first request to the last token, and power is counted over the same time.",
    )
    columns = ("batch_size", "max_output_tokens", "repeat", "elapsed_s", "mean_power_w")
    max_tokens = 16384

    def _row(self, line: Line) -> Row:
        batch, limit = line.whole("batch_size"), line.whole("max_output_tokens")
        repeat = line.number("repeat")
        if repeat < 0:
            raise InputError(line.place, f"repeat is {repeat:g}", "Count repeats from 0")
        cached = repeat > 0
        known = "in the cache" if cached else "new"
        return Row(
            line.place,
            f"offline, at most {limit} tokens, prompts {known}",
            {"elapsed": line.positive("elapsed_s"), "power": line.positive("mean_power_w")},
            groups(
                output=f"at most {limit}",
                batch=band(batch, (100, 250, 500, 750, 1000), "requests"),
                prompts=known,
            ),
            {"batch": batch, "limit": limit, "cached": cached},
        )

    def _play(self, blueprint: Blueprint, given: Mapping[str, Any], rng: np.random.Generator) -> Run:
        n = given["batch"]
        work = Work(
            arrival_s=np.zeros(n),
            prompt_tokens=log_normal(PROMPT_MEAN, n, rng),
            output_tokens=normal(OUTPUT_MEAN, OUTPUT_SD, given["limit"], n, rng),
            cached=given["cached"],
        )
        return play(blueprint, work, rng)

    def _compared(self, run: Run) -> dict[str, float]:
        return {"elapsed": run.duration_s}
