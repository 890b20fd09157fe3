"""GPUs, models and fitted figures with their sources."""

from __future__ import annotations

from .catalog import Catalog
from .model_spec import ModelSpec
from .scales import Cut, Scale
from .specs import GpuSpec

__all__ = ["Catalog", "Cut", "GpuSpec", "ModelSpec", "Scale"]
