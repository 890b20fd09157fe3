"""The one error that users cause and can mend, as the simulator knows it."""

from __future__ import annotations

from ..errors import InputError

__all__ = ["InputError"]
