"""GPUs and models in measured files, by the names of the catalogue."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from ...simulator.catalog import Catalog, GpuSpec, ModelSpec
from ...simulator.errors import InputError

PRODUCTS = {
    "A100-SXM4-80GB": "A100-80GB",
    "A100-SXM4-40GB": "A100-40GB",
    "A100 80GB PCIe": "A100-80GB-PCIe",
    "H100 80GB HBM3": "H100-80GB",
    "B300 SXM6 AC": "B300",
    "V100-PCIE-32GB": "V100-32GB",
}
"""GPUs of the catalogue by what nvidia-smi calls them, where that is another name."""
USUAL = {"A100": "A100-80GB", "H100": "H100-80GB", "V100": "V100-32GB"}
"""What serving benchmarks mean by a family."""
VENDOR = {"nvidia", "tesla"}
BOARD = re.compile(r"sxm\d?|hbm\de?|ac")
"""Words for a board with a socket, which the catalogue's names leave out."""


def called(find: Callable[[str], GpuSpec | ModelSpec], text: str, usual: Mapping[str, str]) -> str:
    """What the catalogue calls it, else what such files usually mean by it, else as it stands there.

    Args:
        find: ``Catalog.gpu`` or ``Catalog.model`` of the catalogue in use.
        text: As in the file.
        usual: Names of the catalogue by those of such files.
    """
    try:
        return find(text).name
    except InputError:
        return usual.get(text, text)


def gpu_called(catalog: Catalog, text: str, usual: Mapping[str, str] = USUAL) -> str:
    """The name of a GPU in the catalogue, by any of its names: as nvidia-smi or a data sheet has it, or its family's.

    Words count in any order and case, without the vendor's. A PCIe board is never taken for one with a socket, nor the
    other way round, nor one memory size for another: then the text stays as it is, and the catalogue lacks it.

    Args:
        catalog: GPUs in use.
        text: As in the file.
        usual: Names of the catalogue by families.
    """
    if (known := called(catalog.gpu, text, {})) in catalog.gpus:
        return known
    spelled = {_gpu_words(name): name for name in catalog.gpus}
    spelled |= {_gpu_words(product): name for product, name in PRODUCTS.items() if name in catalog.gpus}
    on_pcie = {name for words, name in spelled.items() if "pcie" in words}
    socketed = {_bare(words): name for words, name in spelled.items() if name not in on_pcie}
    families = {_gpu_words(family): name for family, name in usual.items()}
    words = _gpu_words(text)
    bare = _bare(words)
    family = families.get(bare) if words == bare or families.get(bare) not in on_pcie else None
    return spelled.get(words) or socketed.get(bare) or family or text


def mentioned(text: str, known: Iterable[str]) -> str | None:
    """The longest of the known names that stands in a text, as whole words, whatever the punctuation within it."""
    words = _words(text)
    runs = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
    return max((name for name in known if "".join(_words(name)) in runs), key=len, default=None)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _gpu_words(text: str) -> frozenset[str]:
    return frozenset(_words(re.sub(r"(?i)(\d+) ?gi?b\b", r"\1gb", text))) - VENDOR


def _bare(words: frozenset[str]) -> frozenset[str]:
    return frozenset(word for word in words if not BOARD.fullmatch(word))
