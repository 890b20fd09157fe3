"""Range queries of Prometheus as JSON: DCGM exporter, nvidia_gpu_exporter, vLLM.

The answer of ``/api/v1/query_range``, an array of such answers, or one to a line.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...files import readable
from .options import Options
from .resample import Samples, second_counts, second_means, telemetry_of
from .series import Floats, Telemetry

POWER = {
    "DCGM_FI_DEV_POWER_USAGE": 1.0,
    "DCGM_FI_DEV_POWER_USAGE_INSTANT": 1.0,
    "nvidia_smi_power_draw_watts": 1.0,
    "nvidia_gpu_power_usage_milliwatts": 1e-3,
}
"""Metrics of power, watts per unit; of several the first one counts."""
GPU = {
    "DCGM_FI_DEV_GPU_TEMP": "temperature_c",
    "DCGM_FI_DEV_SM_CLOCK": "sm_clock_mhz",
    "DCGM_FI_DEV_POWER_MGMT_LIMIT": "cap_w",
    "nvidia_smi_temperature_gpu": "temperature_c",
    "nvidia_smi_enforced_power_limit_watts": "cap_w",
}
GAUGES = {"vllm:num_requests_running": "running", "vllm:num_requests_waiting": "waiting"}
COUNTERS = {"vllm:prompt_tokens_total": "prompt_tokens", "vllm:generation_tokens_total": "output_tokens"}
GPU_LABELS = ("gpu", "index", "minor_number", "uuid", "UUID")
HOST_LABELS = ("Hostname", "hostname", "instance")

Labels = tuple[tuple[str, str], ...]
Values = tuple[Floats, Floats]


def read_prometheus(path: Path, options: Options) -> Telemetry:
    """Reads range queries; one engine's counters go to all its GPUs, those of several are left out with a warning."""
    readable(path)
    series, warnings = _series(path)
    metric = next((name for name in POWER if name in series), None)
    if metric is None:
        raise InputError(
            str(path),
            f"no metric of power among {', '.join(sorted(name or '(no name)' for name in series))}",
            f"Query one of {', '.join(POWER)}, without a function around it: a function drops the name",
        )
    channels = {channel: _values(parts, path) for channel, parts in _by_channel(series[metric], path).items()}
    samples = {channel: Samples(time_s, watts * POWER[metric]) for channel, (time_s, watts) in channels.items()}
    telemetry = telemetry_of(samples, str(path), options.max_gap_s, warnings)
    warnings = telemetry.warnings
    grid_s = telemetry.bounds_s
    covariates: dict[str, Floats] = {}
    for name, covariate in GPU.items():
        if name in series and covariate not in covariates:
            own = {key: _values(parts, path) for key, parts in _by_channel(series[name], path).items()}
            nothing = np.full(len(telemetry), np.nan)
            covariates[covariate] = np.stack(
                [
                    second_means(*own[key], grid_s, options.max_gap_s) if key in own else nothing
                    for key in telemetry.channels
                ],
                axis=1,
            )
    for name, covariate in (GAUGES | COUNTERS).items():
        if name not in series:
            continue
        if len(series[name]) > 1:
            warnings += (f"{path}: {name} of {len(series[name])} engines left out: which GPUs are whose is not said",)
            continue
        time_s, values = _values(next(iter(series[name].values())), path)
        resampled = (second_means if name in GAUGES else second_counts)(time_s, values, grid_s, options.max_gap_s)
        covariates[covariate] = np.repeat(resampled[:, None], len(telemetry.channels), axis=1)
    return Telemetry(
        telemetry.power_w, telemetry.channels, telemetry.start_s, covariates, source=str(path), warnings=warnings
    )


def _series(path: Path) -> tuple[dict[str, dict[Labels, list[list[Any]]]], tuple[str, ...]]:
    """Pairs of time and value by metric and labels, pages of one series joined, and what was left out."""
    found: dict[str, dict[Labels, list[list[Any]]]] = defaultdict(lambda: defaultdict(list))
    answers, warnings = _answers(path)
    for answer in answers:
        if not isinstance(answer, dict) or "status" not in answer:
            raise InputError(str(path), "is no answer of Prometheus", "Save what /api/v1/query_range answers")
        if answer["status"] != "success":
            raise InputError(str(path), f"Prometheus answered: {answer.get('error', 'an error')}", "Mend the query")
        data = answer.get("data", {})
        if data.get("resultType") != "matrix":
            raise InputError(
                str(path), f"the result is a {data.get('resultType')}, not a matrix", "Use /api/v1/query_range"
            )
        for one in data.get("result", []):
            labels = dict(one.get("metric", {}))
            name = labels.pop("__name__", "")
            found[name][tuple(sorted(labels.items()))].extend(one.get("values", []))
    return found, warnings


def _answers(path: Path) -> tuple[list[Any], tuple[str, ...]]:
    """The answers in a file, and a warning where the last of several lines was cut while it was written."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as fault:
        lines = [line for line in text.splitlines() if line.strip()]
        cut = len(lines) > 1 and not text.endswith("\n") and not _is_json(lines[-1])
        try:
            answers = [json.loads(line) for line in lines[: -1 if cut else None]]
        except json.JSONDecodeError:
            raise InputError(
                f"{path}:{fault.lineno}", f"is no JSON ({fault.msg})", "Export it again; it may have been cut"
            ) from None
        return answers, (f"{path}: the last line was cut and is left out",) if cut else ()
    return whole if isinstance(whole, list) else [whole], ()


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _by_channel(series: dict[Labels, list[list[Any]]], path: Path) -> dict[str, list[list[Any]]]:
    """Series by the name of the GPU, with the host before it where there are several hosts."""
    hosts = {_label(dict(labels), HOST_LABELS, "") for labels in series}
    channels: dict[str, list[list[Any]]] = {}
    for labels, pairs in sorted(series.items()):
        gpu = _label(dict(labels), GPU_LABELS, "0")
        name = f"gpu{gpu}" if gpu.isdigit() else gpu
        if len(hosts) > 1:
            name = f"{_label(dict(labels), HOST_LABELS, '')}/{name}"
        if name in channels:
            raise InputError(str(path), f"several series of {name}", "Query one job, and one series per GPU")
        channels[name] = pairs
    return channels


def _label(labels: dict[str, str], names: tuple[str, ...], default: str) -> str:
    return next((labels[name] for name in names if name in labels), default)


def _values(pairs: list[list[Any]], path: Path) -> Values:
    """Times and values in order; what is not finite is no reading."""
    try:
        table = np.array([(float(time_s), float(value)) for time_s, value in pairs])
    except (TypeError, ValueError):
        raise InputError(str(path), "values are no pairs of time and number", "Export it again") from None
    table = table.reshape(-1, 2)
    _, first = np.unique(table[:, 0], return_index=True)  # pages of one query share a bound
    values = np.where(np.isfinite(table[first, 1]), table[first, 1], np.nan)
    return table[first, 0], values
