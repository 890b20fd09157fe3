"""The catalogue: GPUs and models by name, built in or added from a TOML file of the user."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError

from ..errors import InputError
from .model_spec import ModelSpec
from .scales import Cut, Scale
from .specs import GpuSpec

Entry = TypeVar("Entry", GpuSpec, ModelSpec)
Kind = TypeVar("Kind", GpuSpec, ModelSpec, Scale)

_HERE = Path(__file__).parent
_FILES = (_HERE / "gpus.toml", _HERE / "models.toml", _HERE / "scales.toml")
_SECTIONS = ("host", "gpus", "models", "scales")


@dataclass(frozen=True)
class Catalog:
    """GPUs and models by canonical name.

    Look-ups ignore case and the organisation of a Hugging Face id (``Qwen/Qwen3-8B``), and know the entries' aliases.

    A TOML file has a ``[gpus."Name"]`` or ``[models."Name"]`` table for each entry, and may have a ``[host]`` table,
    the default of its GPUs' ``host``. ``like = "Other"`` in an entry takes over what it does not give itself; fitted
    figures that it takes over count as not calibrated, unless the other is the known entry of the same name. Factors
    for one model on one GPU are ``[[scales]]``.

    Attributes:
        gpus: GPUs by name.
        models: Models by name.
        scales: Factors by what they were fitted for.
    """

    gpus: Mapping[str, GpuSpec]
    models: Mapping[str, ModelSpec]
    scales: Mapping[Cut, Scale] = field(default_factory=dict)

    @classmethod
    def builtin(cls) -> Catalog:
        """The catalogue that the package ships."""
        catalog = cls(MappingProxyType({}), MappingProxyType({}))
        for path in _FILES:
            catalog = catalog.with_file(path)
        return catalog

    def gpu(self, name: str) -> GpuSpec:
        """The GPU of that name.

        Args:
            name: Such as ``H100-80GB``, in any case.

        Returns:
            Its data sheet and fitted figures.

        Raises:
            InputError: No such GPU; the message lists the known ones.
        """
        return _find(name, self.gpus, "GPU")

    def model(self, name: str) -> ModelSpec:
        """The model of that name.

        Args:
            name: Such as ``Llama-3.1-8B``, in any case.

        Returns:
            Its dimensions.

        Raises:
            InputError: No such model; the message lists the known ones.
        """
        return _find(name, self.models, "model")

    def scale(self, model: str, gpu: str, tp: int, pp: int = 1, ep: bool = False) -> Scale:
        """The factors fitted for a model on a GPU; all 1 where none were."""
        cut = Cut(model, gpu, tp, pp, ep)
        return self.scales.get(cut) or Scale(**cut._asdict(), source="none: the figures of the GPU as they are")

    def with_file(self, path: str | Path) -> Catalog:
        """This catalogue and the entries of a TOML file; an entry of a known name replaces the known one.

        Args:
            path: The file.

        Returns:
            A new catalogue.

        Raises:
            InputError: The file cannot be read, or an entry does not hold.
        """
        tables = _read(Path(path))
        gpus, models = dict(self.gpus), dict(self.models)
        host = next((gpu.host.model_dump() for gpu in gpus.values()), {}) | tables.get("host", {})
        for name, entry in tables.get("gpus", {}).items():
            gpus[name] = _build(GpuSpec, name, {"host": host} | entry, gpus, f"{path}: gpus.{name}")
        for name, entry in tables.get("models", {}).items():
            models[name] = _build(ModelSpec, name, entry, models, f"{path}: models.{name}")
        scales = dict(self.scales)
        for number, entry in enumerate(tables.get("scales", [])):
            scale = _validated(Scale, entry, f"{path}: scales[{number}]")
            scales[scale.cut] = scale
        return Catalog(MappingProxyType(gpus), MappingProxyType(models), MappingProxyType(scales))


def _find(name: str, known: Mapping[str, Entry], where: str) -> Entry:
    by_lower = {alias.lower(): spec for spec in known.values() for alias in spec.aliases}
    by_lower |= {key.lower(): spec for key, spec in known.items()}
    plain = name.rpartition("/")[2].lower()
    if (spec := by_lower.get(plain)) is not None:
        return spec
    close = get_close_matches(plain, by_lower, n=1)
    hint = f"Did you mean {by_lower[close[0]].name}? " if close else ""
    remedy = f"{hint}Known: {', '.join(known)}; add others with Catalog.with_file"
    raise InputError(where, f"unknown name {name!r}", remedy)


def _read(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "Give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"is not TOML ({error})", "Mend the line it names") from error
    for section, table in tables.items():
        if section == "scales":
            holds = isinstance(table, list) and all(isinstance(entry, dict) for entry in table)
        else:
            entries = [table] if section == "host" else table.values() if isinstance(table, dict) else [None]
            holds = section in _SECTIONS and all(isinstance(entry, dict) for entry in entries)
        if not holds:
            remedy = 'Write entries as [gpus."Name"], [models."Name"] or [[scales]], and defaults of servers as [host]'
            raise InputError(f"{path}: {section}", "is not a table of the catalogue", remedy)
    return tables


def _build(kind: type[Entry], name: str, entry: dict[str, Any], known: Mapping[str, Entry], where: str) -> Entry:
    other = entry.get("like")
    given = {key: value for key, value in entry.items() if key != "like"}
    if other is not None:
        base = _find(str(other), known, f"{where}.like").model_dump()
        given = _merge(base if other == name else _inherited(base, str(other)), given)
    return _validated(kind, given | {"name": name}, where)


def _validated(kind: type[Kind], entry: dict[str, Any], where: str) -> Kind:
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        remedy = f"Correct it; the fields and their units are documented in {kind.__module__}.{kind.__name__}"
        raise InputError(f"{where}.{field}" if field else where, first["msg"], remedy) from error


def _inherited(base: dict[str, Any], name: str) -> dict[str, Any]:
    """Marks the fitted tables of another entry as not measured on this one; its aliases stay its own."""
    return {
        key: value | {"calibrated": False, "source": f"as {name}: {value['source']}"}
        if isinstance(value, dict) and value.get("calibrated")
        else value
        for key, value in base.items()
        if key != "aliases"
    }


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lays one nested table over another; given values win."""
    merged = base | over
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merge(base[key], value)
    return merged
