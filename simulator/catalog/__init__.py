"""GPUs, models and fitted figures with their sources."""

from __future__ import annotations

from .catalog import Catalog
from .model_spec import ModelSpec
from .scales import Scale
from .specs import GpuSpec

__all__ = ["Catalog", "GpuSpec", "ModelSpec", "Scale"]
