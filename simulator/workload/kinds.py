"""Registries of workload parts: what ``kind = "…"`` in a scenario may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


class Part(BaseModel):
    """A frozen piece of a workload specification; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


P = TypeVar("P", bound=Part)


class Kinds(Generic[P]):
    """Maps each ``kind`` to its class, so that users add kinds without touching this package."""

    def __init__(self, what: str) -> None:
        """Starts without kinds; ``what`` they are goes into messages: "arrivals"."""
        self.what = what
        self.classes: dict[str, type[P]] = {}

    def register(self, *kinds: str) -> Callable[[type[P]], type[P]]:
        """Class decorator that enters the class under ``kinds``."""

        def enter(cls: type[P]) -> type[P]:
            self.classes.update(dict.fromkeys(kinds, cls))
            return cls

        return enter

    def parse(self, value: Any) -> Any:
        """Turns a mapping with a ``kind`` into the registered class; anything else passes on to pydantic."""
        if not isinstance(value, Mapping):
            return value
        kind = value.get("kind")
        if kind not in self.classes:
            raise ValueError(f"no {self.what} of kind {kind!r}; give one of {', '.join(sorted(self.classes))}")
        try:
            return self.classes[kind].model_validate(dict(value))
        except ValidationError as fault:
            told = (f"{'.'.join(map(str, e['loc'])) or kind}: {e['msg']}" for e in fault.errors())
            raise ValueError("; ".join(told)) from None
