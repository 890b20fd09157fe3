"""A cluster laid out: what does not change between its runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .catalog import Catalog
from .confidence import Confidence, confidence
from .deployments import Deployment, stack
from .errors import InputError
from .kernels.state import Tables
from .topology import ClusterSpec, Slot, lay_out
from .units import to_ps
from .variants import Offer, Variant


@dataclass(frozen=True, eq=False)
class Blueprint:
    """What does not change between runs of one cluster; build it once and share it.

    Attributes:
        spec: The specification.
        slots: All slots, R of them.
        models: Names of the models.
        deployments: Every model on every kind of slot that can hold it, and the variants.
        index: int64 (R, models): deployment of each model on each slot as it is laid out, -1 if it does not fit.
        variants: What each slot may hold, that first which it is laid out for, R tuples.
        tables: The same as the engine's arrays.
        initial: int64 (R,): deployment at the start.
    """

    spec: ClusterSpec
    slots: tuple[Slot, ...]
    models: tuple[str, ...]
    deployments: tuple[Deployment, ...]
    index: NDArray[np.int64]
    variants: tuple[tuple[Variant, ...], ...]
    tables: Tables
    initial: NDArray[np.int64]

    @classmethod
    def of(cls, spec: ClusterSpec, catalog: Catalog | None = None) -> Blueprint:
        """Lays the cluster out.

        Raises:
            InputError: A name is unknown, or a model does not fit its slot.
        """
        slots, models = lay_out(spec), spec.served_models()
        if not models:
            raise InputError("cluster.models", "no model is named", "Name one here or as the model of a server")
        offer = Offer(spec, slots, models, catalog or Catalog.builtin())
        deployments, index = offer.deployments, offer.index
        initial = [
            index[r, models.index(s.spec.model)] if s.spec.model else index[r].max() for r, s in enumerate(slots)
        ]
        tables = stack(deployments, spec.engine)
        first = np.array(initial, np.int64)
        return cls(spec, slots, models, tuple(deployments), index, offer.variants, tables, first)

    def confidence(self, catalog: Catalog | None = None) -> dict[str, Confidence]:
        """What backs the figures of the deployments that slots hold at the start, by what they are."""
        catalog = catalog or Catalog.builtin()
        found = {}
        for slot, d in zip(self.slots, self.initial, strict=True):
            spec, model = slot.spec, self.models[self.deployments[d].model]
            cut = f"tp {spec.tp}" + (f", pp {spec.pp}" if spec.pp > 1 else "") + (", ep" if spec.ep else "")
            name = f"{model} on {spec.gpu} ({cut})"
            if name not in found:
                found[name] = confidence(catalog, model, spec.gpu, spec.tp, spec.pp, spec.ep)
        return found

    @property
    def quality(self) -> NDArray[np.float64]:
        """Score of the model that answers in each deployment, ``nan`` where none is known."""
        scores = np.full(len(self.deployments), np.nan)
        for own in self.variants:
            for variant in own:
                scores[variant.deployment] = variant.quality
        return scores

    @property
    def cap_max_w(self) -> NDArray[np.float64]:
        """Highest power limit of each slot, watts (R,)."""
        return np.array([self.deployments[d].power.cap_max_w for d in self.initial])

    @property
    def cap_min_w(self) -> NDArray[np.float64]:
        """Lowest power limit of each slot, watts (R,)."""
        return np.array([self.deployments[d].power.cap_min_w for d in self.initial])

    @property
    def cap_ps(self) -> NDArray[np.int64]:
        """Time until a power limit of each slot holds, picoseconds (R,)."""
        return np.array([to_ps(self.deployments[d].power.cap_settles_s) for d in self.initial], np.int64)

    @property
    def lock_ps(self) -> NDArray[np.int64]:
        """Time until a clock lock of each slot holds, picoseconds (R,)."""
        return np.array([to_ps(self.deployments[d].power.lock_settles_s) for d in self.initial], np.int64)
