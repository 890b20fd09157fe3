"""Placement: the slot for a new instance or machine, by what it would do to row, air and dies."""

from __future__ import annotations

import numpy as np

from .outlook import Forecaster, Outlook
from .reading import F64

MIX = 0.2
"""What a row full of machines that cannot be steered counts, against one that is at its limit."""


def best_slot(forecaster: Forecaster, outlook: Outlook, candidates: np.ndarray, *, tenant: bool) -> int:
    """The best of the candidates.

    The paper's allocator first rejects servers whose row or aisle would pass its power or airflow at the predicted
    peaks, or that would run too hot; of the rest it prefers, for machines that it cannot steer (IaaS), cool places, and
    for its own (SaaS) warm ones, and keeps both kinds mixed in each row, so that every row has something to steer.
    Where all are rejected, the least bad is taken: the machine has been sold.

    Args:
        forecaster: Predicts.
        outlook: What lies ahead without it.
        candidates: Numbers of the slots, not empty.
        tenant: Whether it is a foreign machine.
    """
    now, row = outlook.reading, forecaster.row
    tdp_w = forecaster.task.fleet.cap_max_w
    expected_w = np.where(now.tenant, np.maximum(now.power_w, forecaster.tenant_share * tdp_w), outlook.mean_w)
    share = forecaster.tenant_share if tenant else forecaster.serving_share
    scores = []
    for slot in candidates:
        after_w = expected_w.copy()
        after_w[slot] = share * tdp_w[slot]
        here = row == row[slot]
        limit_w = min(outlook.row_limit_w[row[slot]], outlook.row_air_w[row[slot]])
        heat = _die_c(forecaster, outlook, after_w) / forecaster.limit_c
        fullness, warmth = float(after_w[here].sum() / limit_w), float(heat[slot])
        excess = max(fullness - 1, 0.0) + float((heat - 1).clip(min=0).sum())
        mix = MIX * float((now.tenant & here).sum() / here.sum())
        scores.append((excess, fullness + (mix + warmth if tenant else -mix - warmth)))
    return int(candidates[min(range(len(scores)), key=scores.__getitem__)])


def _die_c(forecaster: Forecaster, outlook: Outlook, power_w: F64) -> F64:
    """Die temperatures if these powers were held in the hottest hour that the history knows, °C (R,).

    A machine stays for longer than the weather does. What is not explained of the inlets now, a failure of the cooling,
    say, is taken to stay.
    """
    inlet_c = outlook.inlet_c
    if forecaster.inlets is not None:
        both_w = np.stack([outlook.mean_w, power_w])
        hottest_c = np.fmax(outlook.outside_c, forecaster.hottest_c)
        before_c, after_c = forecaster.inlets.predict(both_w, np.array([outlook.outside_c, hottest_c]))
        inlet_c = inlet_c + after_c - before_c
    return forecaster.dies.predict(inlet_c, power_w, power_w)
