"""Weights that come with the package, each with its card beside it; `make artefacts` writes them."""

from pathlib import Path


def path_of(name: str) -> Path:
    """The file of weights of a shipped model."""
    return Path(__file__).parent / f"{name}.safetensors"
