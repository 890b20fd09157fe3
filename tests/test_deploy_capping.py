"""Writing caps: what the keeper read back counts, whatever a slow meter says."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmcluster.deploy.capping import Capper
from llmcluster.deploy.guards import Bounds
from llmcluster.deploy.readings import Limits

ON, NONE_LOST = np.array([True, True]), np.array([False, False])


class Keeper:
    """Limits of two GPUs, none below a floor of its own."""

    def __init__(self, floor_w: float = 0.0) -> None:
        self.floor_w, self.limits = floor_w, {"0": 500.0, "1": 500.0}

    def set_power_limit(self, gpu: str, watts: float) -> Limits:
        self.limits[gpu] = max(watts, self.floor_w)
        return Limits(watts, self.limits[gpu])

    @property
    def watts(self) -> np.ndarray[Any, Any]:
        return np.array([*self.limits.values()])


def capper(keeper: Keeper) -> Capper:
    wide = np.full(2, 1e4)
    bounds = Bounds(np.full(2, 100.0), np.full(2, 700.0), wide, wide, np.full(2, 5.0), 0.0)
    return Capper([("0",), ("1",)], bounds, keeper, lambda kind, **facts: None, lambda: 0.0)  # type: ignore[arg-type]


def test_a_meter_that_tells_an_old_limit_does_not_leave_a_higher_one_in_force() -> None:
    keeper = Keeper()
    own, told_w = capper(keeper), keeper.watts
    own.write(own.plan(np.full(2, 700.0), told_w, ON, 0.0, 1400.0), told_w, NONE_LOST)
    assert keeper.watts.tolist() == [700.0, 700.0]
    caps = own.plan(np.full(2, 700.0), told_w, ON, 0.0, 1000.0)
    own.write(caps, told_w, NONE_LOST)
    assert keeper.watts.sum() <= 1000.0


def test_what_the_keeper_has_undone_is_not_taken_for_what_is_in_force() -> None:
    keeper = Keeper()
    own = capper(keeper)
    own.write(own.plan(np.full(2, 700.0), keeper.watts, ON, 0.0, 1400.0), keeper.watts, NONE_LOST)
    own.forget()
    keeper.limits = {"0": 500.0, "1": 500.0}
    assert not own.plan(np.full(2, 500.0), keeper.watts, ON, 0.0, 1400.0).write.any()


def test_a_limit_that_goes_no_lower_is_a_floor_of_the_budget() -> None:
    keeper = Keeper(floor_w=250.0)
    own = capper(keeper)
    for _ in range(2):
        caps = own.plan(np.array([100.0, 700.0]), keeper.watts, ON, 0.0, 800.0)
        own.write(caps, keeper.watts, NONE_LOST)
        assert keeper.watts.sum() <= 1000.0  # what was in force before
    assert keeper.watts.tolist() == [250.0, 550.0]
    assert not own.plan(np.array([100.0, 700.0]), keeper.watts, ON, 0.0, 800.0).write.any()


def test_a_floor_that_turns_out_lower_is_given_up() -> None:
    keeper = Keeper(floor_w=250.0)
    own = capper(keeper)
    own.write(own.plan(np.array([100.0, 500.0]), keeper.watts, ON, 0.0, 800.0), keeper.watts, NONE_LOST)
    keeper.floor_w, keeper.limits["0"] = 0.0, 150.0
    own.write(own.plan(np.array([100.0, 500.0]), keeper.watts, ON, 0.0, 800.0), keeper.watts, NONE_LOST)
    own.write(own.plan(np.array([120.0, 500.0]), keeper.watts, ON, 0.0, 800.0), keeper.watts, NONE_LOST)
    assert keeper.limits["0"] < 151.0
