"""An agent to be asked from outside: telemetry or an observation in, an action out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..agents.base import Agent, State, Task
from ..agents.registry import make_agent, scenario_for
from ..envs.actions import KEEP, OFF, SERVE, SLEEP, ClusterAction
from ..envs.cluster_env import LLMClusterEnv
from ..envs.observation import LIMIT, Observation
from ..envs.scenario import Scenario
from ..envs.telemetry import LEAD_TIMES_S, NOBODY_ASKS, TENANT_ASKS, Telemetry
from ..errors import InputError
from ..forecaster import QUANTILES, TARGETS

MOST = 1e12
"""Beyond what any meter or counter tells."""


@dataclass(frozen=True)
class Field:
    """A reading as callers give it.

    Attributes:
        unit: Its unit.
        shape: Its shape: ``R`` slots, ``n`` seconds, numbers, or nothing for a single number.
        low: Lowest value.
        high: Highest value.
        whole: Whether it is an integer.
        default: What holds where it is not given; there is none for ``None``.
        feature: The observation has such a feature where the reading is needed; empty where it always is.
    """

    unit: str = ""
    shape: tuple[str | int, ...] = ("R",)
    low: float = 0.0
    high: float = MOST
    whole: bool = False
    default: float | None = None
    feature: str = ""


AHEAD = len(LEAD_TIMES_S)
FIELDS: Mapping[str, Field] = {
    "power_w": Field("W, each second of the tick", ("n", "R")),
    "temperature_c": Field("°C", low=-100.0, high=500.0),
    "clock_ratio": Field(high=2.0, default=1.0),
    "cap_w": Field("W", default=np.nan),
    "status": Field("0 empty, 1 loading, 2 serving, 3 draining, 4 sleeping, 5 failed, 6 tenant", high=6, whole=True),
    "ready_in_s": Field("s", default=0.0),
    "model": Field("index of `models`", whole=True),
    "running": Field("requests"),
    "waiting": Field("requests"),
    "kv_used": Field("share", high=1.0),
    "prompt_tokens_per_s": Field("tokens/s"),
    "output_tokens_per_s": Field("tokens/s"),
    "route_weight": Field(default=1.0),
    "arrivals_per_s": Field("requests/s", ()),
    "arriving_tokens_per_s": Field("tokens/s", ()),
    "held_at_gateway": Field("requests", (), default=0.0),
    "slo_attainment": Field("share", (), high=1.0, default=1.0),
    "budget_w": Field("W, now and 30 s and 60 s ahead", (AHEAD,), default=np.nan),
    "pending_instances": Field("instances", (), whole=True, default=0),
    "pending_model": Field(
        "index of `models`, -1 nobody, -2 a tenant", (), low=TENANT_ASKS, whole=True, default=NOBODY_ASKS
    ),
    "inlet_c": Field("°C", low=-100.0, high=500.0, feature="inlet"),
    "row_headroom_w": Field("W, now and 30 s and 60 s ahead", (AHEAD, "R"), low=-MOST, feature="row_headroom_in_0s"),
    "outside_c": Field("°C, now and 30 s and 60 s ahead", (AHEAD,), low=-100.0, high=500.0, feature="outside_in_0s"),
    "price_per_kwh": Field("per kWh, now and ahead", (AHEAD,), low=-MOST, feature="price_in_0s"),
    "carbon_g_per_kwh": Field("g/kWh, now and ahead", (AHEAD,), feature="carbon_in_0s"),
    "in_flight_limit": Field("requests", feature="in_flight_limit"),
    "variant": Field("index of the slot's `variants`", whole=True, feature="quality"),
    "rack_breaker": Field("share of the way to a trip", feature="rack_breaker"),
    "row_breaker": Field("share of the way to a trip", feature="row_breaker"),
    "braked": Field("0 or 1", high=1, whole=True, feature="is_braked"),
}
"""The readings of :class:`Telemetry`."""


class Policy:
    """An agent with its memory, for one cluster.

    Args:
        agent: Name of an agent, or the folder of a trained one.
        scenario: The cluster that it is to act on.

    Raises:
        InputError: There is no such agent, or it needs the future.
    """

    def __init__(self, agent: str, scenario: Scenario) -> None:
        env = LLMClusterEnv(scenario_for(agent, scenario), forecaster="none")
        self.name, self.task = agent, Task.of(env)
        self._agent: Agent = make_agent(agent, self.task)
        if getattr(self._agent, "clairvoyant", False):
            raise InputError(f"agent '{agent}'", "needs to know the future", "Use one that does not")
        self._state: State = None
        self._fresh = True
        self._lengths = {name: int(np.prod(box.shape or ())) for name, box in self.task.observations.space().items()}

    def spaces(self) -> dict[str, Any]:
        """What is to be given and what comes back: names, units, shapes."""
        task, builder = self.task, self.task.observations
        sizes = {"R": len(task.fleet)}
        needed = self._needed()
        return {
            "agent": self.name,
            "scenario": task.scenario.name,
            "tick_s": task.scenario.tick_s,
            "slots": list(task.fleet.slots),
            "gpus": list(task.fleet.gpus),
            "models": list(task.fleet.models),
            "variants": [list(own) for own in task.fleet.variants],
            "cap_min_w": task.fleet.cap_min_w.tolist(),
            "cap_max_w": task.fleet.cap_max_w.tolist(),
            "telemetry": {
                name: {
                    "unit": field.unit,
                    "shape": [sizes.get(str(size), size) for size in field.shape],
                    "needed": name in needed,
                }
                for name, field in FIELDS.items()
            },
            "forecast_w": {
                "unit": "W",
                "shape": [len(task.fleet) + 1, len(TARGETS), len(QUANTILES)],
                "targets": list(TARGETS),
                "quantiles": list(QUANTILES),
            },
            "observation": {
                "length": self._lengths,
                "limit": LIMIT,
                "slots": [_finite(asdict(feature)) for feature in builder.slot_features],
                "cluster": [_finite(asdict(feature)) for feature in builder.cluster_features],
                "forecast": list(builder.forecast_features),
            },
            "action": {
                "heads": task.codec.layout.sizes.tolist(),
                "groups": list(task.codec.groups),
                "routers": list(task.codec.routers),
                "lifecycle": {"keep": KEEP, "sleep": SLEEP, "off": OFF}
                | {f"serve {name}": SERVE + m for m, name in enumerate(task.fleet.models)},
            },
        }

    def decide(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """One decision.

        Args:
            asked: ``telemetry`` in natural units, with or without ``forecast_w``, or ``observation``, the arrays as the
                environment has them; ``action_mask`` if it is not to be had from the telemetry; ``start`` where the
                agent shall forget what was before.

        Returns:
            ``action``, by the fields of :class:`ClusterAction`, and ``encoded``.

        Raises:
            InputError: What is asked does not hold.
        """
        unknown = sorted(asked.keys() - {"telemetry", "forecast_w", "observation", "action_mask", "start"})
        if unknown or ("telemetry" in asked) == ("observation" in asked):
            raise InputError("the body", f"has {unknown or 'both or neither'}", "Give `telemetry` or `observation`")
        if not isinstance(asked.get("start", False), bool):
            raise InputError("start", "is neither true nor false", "Leave it out, or give one of them")
        codec = self.task.codec
        if "telemetry" in asked:
            telemetry = self._telemetry(asked["telemetry"])
            observation = self.task.observations.build(telemetry, self._forecast_w(asked.get("forecast_w"), telemetry))
            mask = codec.masks(telemetry)
        else:
            observation, mask = self._observation(asked["observation"]), codec.fixed_mask
        if asked.get("action_mask") is not None:
            mask = mask & self._mask(asked["action_mask"])
            self._check_open(mask)
        start = np.array([self._fresh or bool(asked.get("start"))])
        encoded, self._state = self._agent.predict(observation, self._state, start, True, mask)
        self._fresh = False
        return {"action": _plain(codec.decode(encoded)), "encoded": encoded.tolist()}

    def _needed(self) -> set[str]:
        builder = self.task.observations
        features = {feature.name for feature in (*builder.slot_features, *builder.cluster_features)}
        return {n for n, f in FIELDS.items() if (f.feature in features if f.feature else f.default is None)}

    def _telemetry(self, given: object) -> Telemetry:
        if not isinstance(given, dict):
            raise InputError("telemetry", "is no object", "Give readings by name; see /spaces")
        if unknown := sorted(given.keys() - FIELDS.keys()):
            raise InputError("telemetry", f"has no {unknown[0]!r}", f"Use {', '.join(FIELDS)}")
        if missing := sorted(name for name in self._needed() if given.get(name) is None):
            raise InputError("telemetry", f"lacks {', '.join(missing)}", "Give what this scenario needs; see /spaces")
        read = {name: self._reading(name, given.get(name)) for name in FIELDS}
        fleet = self.task.fleet
        read["cap_w"] = np.where(np.isnan(read["cap_w"]), fleet.cap_max_w, read["cap_w"])
        read["budget_w"] = np.where(np.isnan(read["budget_w"]), fleet.cap_max_w.sum(), read["budget_w"])
        return Telemetry(**read)

    def _reading(self, name: str, given: object) -> Any:
        field, size = FIELDS[name], len(self.task.fleet)
        shape = tuple(size if axis == "R" else axis for axis in field.shape)
        if given is None:
            fixed = tuple(1 if axis == "n" else int(axis) for axis in shape)
            return None if field.default is None else _as(np.full(fixed, field.default), field)
        if name == "power_w" and isinstance(given, list) and given and not isinstance(given[0], list):
            given = [given]
        values = _numbers(name, given)
        if len(values.shape) != len(shape) or any(
            have != want and want != "n" for have, want in zip(values.shape, shape, strict=True)
        ):
            raise InputError(name, f"has shape {list(values.shape)}", f"Give {list(shape)}; R is {size}")
        high = self._highest(name, field)
        if not ((values >= field.low) & (values <= high)).all() or (field.whole and (values % 1).any()):
            kind = "integers" if field.whole else "numbers"
            raise InputError(name, "has values that cannot be", f"Give {kind} from {field.low:g} to {np.max(high):g}")
        if "n" in shape and not 1 <= len(values) <= 3600:
            raise InputError(name, f"has {values.shape[0]} rows", "Give the seconds of a tick, 3,600 at most")
        return _as(values, field)

    def _highest(self, name: str, field: Field) -> float | NDArray[np.float64]:
        fleet = self.task.fleet
        if name in ("model", "pending_model"):
            return len(fleet.models) - 1
        return np.array([len(own) - 1.0 for own in fleet.variants]) if name == "variant" else field.high

    def _forecast_w(self, given: object, now: Telemetry) -> NDArray[np.float64]:
        """Forecast quantiles; without any, the power of the tick is taken to last."""
        shape = (len(self.task.fleet) + 1, len(TARGETS), len(QUANTILES))
        if given is None:
            slots_w = now.power_w.mean(axis=0)
            return np.broadcast_to(np.append(slots_w, slots_w.sum())[:, None, None], shape).copy()
        values = _numbers("forecast_w", given)
        if values.shape != shape:
            raise InputError("forecast_w", f"has shape {list(values.shape)}", f"Give {list(shape)}")
        return values

    def _observation(self, given: object) -> Observation:
        if not isinstance(given, dict) or given.keys() != self._lengths.keys():
            raise InputError("observation", "has other parts", f"Give {', '.join(self._lengths)}; see /spaces")
        parts = {}
        for name, length in self._lengths.items():
            values = _numbers(name, given[name]).ravel()
            if len(values) != length or (np.abs(values) > LIMIT).any():
                problem = f"has {len(values)} values, or some beyond {LIMIT:g}"
                raise InputError(f"observation.{name}", problem, f"Give {length} of at most {LIMIT:g}")
            parts[name] = values.astype(np.float32)
        return parts

    def _mask(self, given: object) -> NDArray[np.bool_]:
        length = len(self.task.codec.fixed_mask)
        if not isinstance(given, list) or len(given) != length or not all(isinstance(open_, bool) for open_ in given):
            raise InputError("action_mask", "is no such list", f"Give {length} times true or false, head by head")
        return np.array(given, bool)

    def _check_open(self, mask: NDArray[np.bool_]) -> None:
        heads = np.split(mask, np.cumsum(self.task.codec.layout.sizes)[:-1])
        if not all(head.any() for head in heads):
            raise InputError("action_mask", "leaves a head without an open option", "Open one that fits")


def _numbers(name: str, given: object) -> NDArray[np.float64]:
    try:
        values = np.array(given)
    except (ValueError, OverflowError) as fault:
        raise InputError(name, "is no array of numbers", "Give lists of equal length") from fault
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all() or (np.abs(values) > MOST).any():
        raise InputError(name, "is no array of finite numbers", "Give numbers")
    return values.astype(np.float64)


def _as(values: NDArray[np.float64], field: Field) -> Any:
    if not field.shape:
        return int(values) if field.whole else float(values)
    if field.feature == "is_braked":
        return values.astype(bool)
    return values.astype(np.int64) if field.whole else values


def _plain(action: ClusterAction) -> dict[str, Any]:
    values = {field.name: getattr(action, field.name) for field in fields(action)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def _finite(feature: dict[str, Any]) -> dict[str, Any]:
    """A feature's description, in which JSON can say that the scale is the slot's TDP."""
    return {**feature, "scale": "tdp" if np.isnan(feature["scale"]) else feature["scale"]}
