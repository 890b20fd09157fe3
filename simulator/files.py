"""Checking, reading and writing files, as the simulator knows it."""

from __future__ import annotations

from ..files import read_toml, readable, whole

__all__ = ["read_toml", "readable", "whole"]
