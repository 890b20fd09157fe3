"""Variants: with which model, on how many of its GPUs, a slot may serve what requests ask for, and how well.

The engine knows of deployments only, each of a model that requests ask for. A variant is one more deployment of that
model, whose figures are those of the model that answers in its place.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from .catalog import Catalog
from .deployments import deploy
from .errors import InputError
from .kernels.tables import PowerCoefficients
from .topology import ClusterSpec, ServerSpec, Slot, VariantSpec

SCORES = Path(__file__).parent / "catalog" / "quality.toml"


@dataclass(frozen=True)
class Variant:
    """What a slot may serve a model with.

    Attributes:
        name: Model and parallelism, such as ``Llama-3.1-8B tp1``; with several models, also which one it stands for.
        model: Number of the model that requests ask for.
        deployment: Number of the deployment.
        quality: Score of the model that answers, 0 to 1; ``nan`` if none is known.
    """

    name: str
    model: int
    deployment: int
    quality: float


@cache
def _scores() -> dict[str, float]:
    tables = tomllib.loads(SCORES.read_text(encoding="utf-8"))["scores"]
    return {name: float(entry["score"]) for name, entry in tables.items()}


def quality_of(model: str, catalog: Catalog) -> float:
    """The published score of a model, 0 to 1; ``nan`` if none is known."""
    return _scores().get(catalog.model(model).name, math.nan)


class Offer:
    """What the slots of a cluster may hold: what they are laid out for, and the variants of the specification.

    A variant on fewer GPUs than the slot has leaves the others without weights: they draw what an empty GPU draws, and
    the power limit of the slot is shared by those that work. One that does not fit a slot is not offered there.

    Args:
        spec: The cluster.
        slots: Its slots.
        models: Models that requests may ask for.
        catalog: GPUs and models.

    Attributes:
        deployments: All deployments.
        index: int64 (slots, models): the deployment that each slot is laid out for, -1 where the model does not fit.
        variants: What each slot may hold.

    Raises:
        InputError: A name is unknown, a model does not fit its slot, or a variant fits none.
    """

    def __init__(self, spec: ClusterSpec, slots: Sequence[Slot], models: Sequence[str], catalog: Catalog) -> None:
        self._engine, self._models, self._catalog = spec.engine, models, catalog
        self.deployments, self.index = deploy(slots, models, spec.engine, catalog)
        self._found: dict[tuple[str | int, ...], int] = {}
        own = [
            [self._as_laid_out(slot, m, int(d)) for m, d in enumerate(row) if d >= 0]
            for slot, row in zip(slots, self.index, strict=True)
        ]
        for number, variant in enumerate(spec.variants):
            self._add(f"cluster.variants[{number}]", variant, slots, own)
        self.variants = tuple(tuple(variants) for variants in own)

    def _as_laid_out(self, slot: Slot, model: int, deployment: int) -> Variant:
        name = self._models[model]
        return Variant(self._named(name, slot.spec, model), model, deployment, quality_of(name, self._catalog))

    def _named(self, answers: str, spec: ServerSpec, model: int) -> str:
        name = f"{answers} tp{spec.tp}" + (f" pp{spec.pp}" if spec.pp > 1 else "")
        return name if len(self._models) == 1 else f"{name} for {self._models[model]}"

    def _add(self, where: str, variant: VariantSpec, slots: Sequence[Slot], offered: list[list[Variant]]) -> None:
        """Offers a variant to the slots that it fits."""
        if variant.serves not in self._models:
            known = ", ".join(self._models)
            raise InputError(f"{where}.serves", f"the cluster does not have '{variant.serves}'", f"Use one of {known}")
        answers, model = variant.model or variant.serves, list(self._models).index(variant.serves)
        try:
            experts = self._catalog.model(answers).experts
        except InputError as refusal:
            raise InputError(f"{where}.model", refusal.problem, refusal.remedy) from refusal
        refusals: list[InputError] = []
        fits = False
        for slot, own in zip(slots, offered, strict=True):
            cut = {} if variant.tp is None else {"tp": variant.tp, "pp": 1}
            spec = slot.spec.model_copy(update={**cut, "model": answers, "ep": slot.spec.ep and experts > 1})
            name, rest = self._named(answers, spec, model), slot.spec.tp * slot.spec.pp - spec.tp * spec.pp
            if rest < 0 or any(name == other.name for other in own):
                continue
            try:
                deployment = self._deployment(replace(slot, spec=spec), answers, model, rest)
            except InputError as refusal:
                refusals.append(refusal)
                continue
            fits = True
            own.append(Variant(name, model, deployment, quality_of(answers, self._catalog)))
        if not fits:
            problem = refusals[0].problem if refusals else "every slot is smaller, or is laid out so anyway"
            raise InputError(where, f"fits no slot: {problem}", "Leave it out, or change model or tp")

    def _deployment(self, slot: Slot, answers: str, model: int, rest: int) -> int:
        """Number of the deployment of ``answers`` in the place of ``model``, beside ``rest`` idle GPUs."""
        spec = slot.spec
        key = (spec.gpu, spec.tp, spec.pp, spec.ep, rest, answers, model)
        if key not in self._found:
            (made,), _ = deploy([slot], [answers], self._engine, self._catalog)
            power = beside_idle(made.power, self._catalog.gpu(spec.gpu).power.off_w, rest)
            self.deployments.append(replace(made, model=model, power=power))
            self._found[key] = len(self.deployments) - 1
        return self._found[key]


def beside_idle(power: PowerCoefficients, off_w: float, rest: int) -> PowerCoefficients:
    """Power of GPUs at work and of ``rest`` others of the slot that hold nothing and draw ``off_w`` each.

    Temperature is told of the GPUs at work, of which the engine knows the mean power of the slot for each: the thermal
    resistance is lowered so that it is right at their TDP, where it matters. At no load they are told too warm.
    """
    idle_w = rest * off_w
    busy_w = power.cap_max_w
    return power._replace(
        off_w=power.off_w + idle_w,
        idle_w=power.idle_w + idle_w,
        cap_min_w=power.cap_min_w + idle_w,
        cap_max_w=busy_w + idle_w,
        thermal_r_k_per_w=power.thermal_r_k_per_w * (busy_w / (busy_w + idle_w)),
    )
