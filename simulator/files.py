"""Checking and writing files, as the simulator knows it."""

from __future__ import annotations

from ..files import readable, whole

__all__ = ["readable", "whole"]
