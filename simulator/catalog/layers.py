"""Layers of a model that keep something else than keys and values for every token of a sequence."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .fits import Count, Spec


class LatentAttention(Spec):
    """Multi-head latent attention, as DeepSeek-V3 has (arXiv 2412.19437, section 2.1.1).

    One compressed vector per token and layer stands for the keys and values of all heads; it is not sharded over
    tensor-parallel GPUs, so that the model's ``kv_heads`` is 1.

    Attributes:
        query_rank: Width that queries are compressed to.
        kv_rank: Width that keys and values are compressed to.
        rope_dim: Width of the key that carries the position, shared by all heads and cached beside.
    """

    query_rank: Count
    kv_rank: Count
    rope_dim: Count

    @property
    def cached_elements(self) -> int:
        """Elements cached for one token in one layer."""
        return self.kv_rank + self.rope_dim

    def parameters(self, hidden: int, heads: int, head_dim: int) -> int:
        """Parameters of one layer's projections."""
        queries = self.query_rank * (hidden + heads * (head_dim + self.rope_dim))
        keys_values = hidden * self.cached_elements + self.kv_rank * heads * 2 * head_dim
        return queries + keys_values + heads * head_dim * hidden

    def flop_per_pair(self, heads: int, head_dim: int) -> int:
        """Operations of a query with one key in one layer where keys are decompressed, as vLLM does for prompts.

        To decode it leaves them compressed, which takes ``kv_rank`` per head instead of ``head_dim``: more operations
        but fewer bytes, and the bytes decide.
        """
        return 2 * heads * (2 * head_dim + self.rope_dim)


class Mamba(Spec):
    """Mamba-2 layers (arXiv 2405.21060), whose state does not grow with the context.

    Attributes:
        layers: How many there are.
        heads: Heads.
        head_dim: Width of a head.
        state: Width of the state of each channel.
        groups: Groups of heads that share their input and output projections.
        conv: Width of the convolution, tokens.
        state_dtype_bytes: Bytes of an element of the state (vLLM's ``mamba_ssm_cache_dtype``).
        conv_dtype_bytes: Bytes of an element that waits for the convolution.
    """

    layers: Count
    heads: Count
    head_dim: Count
    state: Count
    groups: Count
    conv: Count
    state_dtype_bytes: Annotated[int, Field(ge=1, le=4)] = 4
    conv_dtype_bytes: Annotated[int, Field(ge=1, le=4)] = 2

    @property
    def bytes_per_sequence(self) -> int:
        """Bytes of one sequence's state in all layers; an iteration reads and writes all of them."""
        waiting = self._convolved * (self.conv - 1)
        return self.layers * (self._inner * self.state * self.state_dtype_bytes + waiting * self.conv_dtype_bytes)

    def parameters(self, hidden: int) -> int:
        """Parameters of one layer."""
        return hidden * (2 * self._inner + self._convolved + self.heads) + self._convolved * self.conv

    @property
    def _inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def _convolved(self) -> int:
        return self._inner + 2 * self.groups * self.state
