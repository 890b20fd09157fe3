"""GPUs, models and fitted figures with their sources."""

from __future__ import annotations

from .catalog import Catalog
from .fits import HostFit
from .scales import Scale
from .specs import GpuSpec, ModelSpec

__all__ = ["Catalog", "GpuSpec", "HostFit", "ModelSpec", "Scale"]
