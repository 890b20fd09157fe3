"""What the catalogue knows of a model: its dimensions, and the bytes and operations that follow from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from ..errors import InputError
from .fits import Count, Spec
from .generic import generic_dimensions
from .layers import LatentAttention, Mamba

NonNegativeCount = Annotated[int, Field(ge=0)]
WeightBytes = Annotated[float, Field(gt=0, le=4)]

SHORT_WINDOW_TOKENS = 1024
"""A sliding window of fewer tokens counts as a state of constant size; a longer one as if it had no end."""
FLOP_PER_PAIR_CHANNEL = 4
VISION_DTYPE_BYTES = 2
MOST_UNEXPLAINED = 0.25
"""Share of the parameters by which the dimensions may miss them: a slip is larger, a part not described smaller."""


class ModelSpec(Spec):
    """One decoder-only language model.

    Layers have attention (grouped-query, multi-head, latent, or with a sliding window) or a Mamba-2 mixer, and an MLP
    (dense, or a mixture of experts with or without shared ones). Weights of one byte are multiplied in FP8 where the
    GPU can. Other widths, such as MXFP4's 4.25 bits, only save bytes and are multiplied in bfloat16, but by a GPU that
    has units for them with activations in FP8.

    Attributes:
        name: Canonical name.
        source: Where the dimensions come from.
        aliases: Other names that it is found by, such as those of checkpoints with equal dimensions.
        guessed: Whether its dimensions are guessed from its size, see ``generic``.
        parameters: All of the language model.
        active_parameters: Those that one token passes through; equal to ``parameters`` for a dense model.
        vision_parameters: Those of an image encoder beside it, in memory but idle with text.
        layers: Layers; a block of attention and MLP is one.
        hidden: Width of the residual stream.
        intermediate: Width of an MLP, of one expert in a mixture.
        gated: Whether an MLP has three matrices (gate, up, down) or two.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        window_layers: Attention layers with a sliding window.
        window_tokens: Length of that window, tokens.
        latent: The compression of latent attention, where that is what the model has.
        mamba: Layers with a Mamba-2 mixer instead of attention.
        mlp_only_layers: Layers that are nothing but an MLP (Nemotron-H); where there are any, the others have none.
        experts: Routed experts of a layer; 1 for a dense model.
        experts_per_token: Routed experts that a token passes through.
        shared_intermediate: Width of the experts of a layer that every token passes through, together.
        dense_layers: Layers of a mixture whose MLP is dense.
        dense_intermediate: Width of the MLP in those.
        vocab: Size of the vocabulary.
        tied_embeddings: Whether the output head shares the input embedding.
        dtype_bytes: Bytes of a weight, where the next three do not say otherwise.
        mlp_dtype_bytes: Bytes of a weight of dense MLPs and of shared experts.
        expert_dtype_bytes: Bytes of a weight of routed experts.
        embedding_dtype_bytes: Bytes of a weight of input embedding and output head.
        kv_dtype_bytes: Bytes of a cached key or value element.
        max_model_len: Longest context, tokens.
    """

    name: str
    source: str
    aliases: tuple[str, ...] = ()
    guessed: bool = False
    parameters: Count
    active_parameters: Count
    vision_parameters: NonNegativeCount = 0
    layers: Count
    hidden: Count
    intermediate: Count
    gated: bool = True
    heads: Count
    kv_heads: Count
    head_dim: Count
    window_layers: NonNegativeCount = 0
    window_tokens: NonNegativeCount = 0
    latent: LatentAttention | None = None
    mamba: Mamba | None = None
    mlp_only_layers: NonNegativeCount = 0
    experts: Count = 1
    experts_per_token: Count = 1
    shared_intermediate: NonNegativeCount = 0
    dense_layers: NonNegativeCount = 0
    dense_intermediate: NonNegativeCount = 0
    vocab: Count
    tied_embeddings: bool = False
    dtype_bytes: WeightBytes = 2
    mlp_dtype_bytes: WeightBytes | None = None
    expert_dtype_bytes: WeightBytes | None = None
    embedding_dtype_bytes: WeightBytes | None = None
    kv_dtype_bytes: Annotated[int, Field(ge=1, le=4)] = 2
    max_model_len: Count

    @classmethod
    def generic(cls, name: str, parameters: int, active_parameters: int, dtype_bytes: float = 2) -> Self:
        """A model of which only the size is known, with dimensions usual for that size.

        Args:
            name: Its name.
            parameters: All of them.
            active_parameters: Those that one token passes through; fewer make it a mixture of experts.
            dtype_bytes: Bytes of a weight.

        Returns:
            Dimensions by the rule of ``generic_dimensions``; ``source`` says that they are not the model's own.

        Raises:
            InputError: No model has such a size.
        """
        fields = {
            "name": name,
            "source": "dimensions guessed from the parameter count",
            "guessed": True,
            "parameters": parameters,
            "active_parameters": active_parameters,
            "dtype_bytes": dtype_bytes,
        }
        try:
            return cls.model_validate(fields | generic_dimensions(parameters, active_parameters))
        except ValidationError as error:
            problem = f"{parameters} parameters, {active_parameters} of them active, make no model"
            remedy = "Give both counts whole, as 8_000_000_000; all are active in a dense model"
            raise InputError(name, problem, remedy) from error

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.active_parameters > self.parameters or self.experts_per_token > self.experts:
            raise ValueError("a token cannot pass through more parameters or experts than there are")
        if self.attention_layers < self.window_layers or self.mlp_layers < self.dense_layers:
            raise ValueError("there are fewer layers than kinds of layers: check layers, mamba.layers and *_layers")
        if bool(self.window_layers) != bool(self.window_tokens) or bool(self.dense_layers) != bool(
            self.dense_intermediate
        ):
            raise ValueError("window_layers goes with window_tokens, dense_layers with dense_intermediate")
        if self.experts == 1 and (self.dense_layers or self.shared_intermediate or self.expert_dtype_bytes):
            raise ValueError("a dense model has no shared or routed experts: give experts")
        if self.latent and self.kv_heads > 1:
            raise ValueError("latent attention keeps one vector for all heads: give kv_heads = 1")
        least = min(self.active_parameters - self.lookup_parameters, self._other_parameters)
        if least <= 0 or self.heads % self.kv_heads:
            raise ValueError("the parts exceed the whole: check parameters, experts, vocab, heads and kv_heads")
        if abs(self.parameters_of_dimensions / self.parameters - 1) > MOST_UNEXPLAINED:
            makes = f"the dimensions make {self.parameters_of_dimensions:,} parameters, not {self.parameters:,}"
            raise ValueError(f"{makes}: check layers, hidden, intermediate, vocab and experts")
        return self

    # ------------------------------------------------------------------------------------------------------- layers

    @property
    def attention_layers(self) -> int:
        """Layers with attention."""
        return self.mixer_layers - (self.mamba.layers if self.mamba else 0)

    @property
    def mixer_layers(self) -> int:
        """Layers with attention or Mamba."""
        return self.layers - self.mlp_only_layers

    @property
    def mlp_layers(self) -> int:
        """Layers with an MLP."""
        return self.mlp_only_layers or self.layers

    @property
    def moe_layers(self) -> int:
        """Layers with a mixture of experts."""
        return self.mlp_layers - self.dense_layers if self.experts > 1 else 0

    @property
    def shared_layers(self) -> int:
        """Layers with experts that every token passes through, beside those it is routed to."""
        return self.moe_layers if self.shared_intermediate else 0

    @property
    def fp8_layers(self) -> int:
        """Layers with weights of one byte."""
        if self._mlp_width == 1 or self.dtype_bytes == 1:
            return self.layers
        return self.moe_layers if self._expert_width == 1 else 0

    @property
    def all_reduces(self) -> int:
        """All-reduces of a forward pass over tensor-parallel GPUs: one after each mixer and each MLP."""
        return self.mixer_layers + self.mlp_layers

    # --------------------------------------------------------------------------------------------------- parameters

    @property
    def lookup_parameters(self) -> int:
        """Parameters of the input embedding, which is looked up and never multiplied."""
        return 0 if self.tied_embeddings else self.vocab * self.hidden

    @property
    def head_parameters(self) -> int:
        """Parameters of the output head."""
        return self.vocab * self.hidden

    @property
    def expert_parameters(self) -> int:
        """Parameters of one routed expert in all layers; of the MLPs for a dense model."""
        return self._mlp_parameters(self.intermediate, self.moe_layers if self.experts > 1 else self.mlp_layers)

    @property
    def parameters_of_dimensions(self) -> int:
        """Parameters of all matrices, counted from the dimensions: ``parameters`` but for biases and norms."""
        if self.latent:
            attention = self.latent.parameters(self.hidden, self.heads, self.head_dim)
        else:
            attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        mixers = self.attention_layers * attention
        if self.mamba:
            mixers += self.mamba.layers * self.mamba.parameters(self.hidden)
        routers = self.moe_layers * self.hidden * self.experts
        mlps = self._unrouted_parameters + self._routed_parameters
        return mixers + routers + mlps + self.lookup_parameters + self.head_parameters

    def untouched_experts(self, tokens: float) -> float:
        """Expected experts of a layer that none of so many tokens is routed to.

        With uniform routing ``tokens`` tokens touch E·(1 − (1 − k/E)^tokens) distinct experts of E.
        """
        return 0.0 if self.experts == 1 else self.experts * (1 - self.experts_per_token / self.experts) ** tokens

    # -------------------------------------------------------------------------------------------------------- bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        table = 0 if self.tied_embeddings else self.head_bytes
        return round(self.block_bytes + self.head_bytes + table + self.vision_bytes)

    @property
    def block_bytes(self) -> float:
        """Bytes of all weights but embedding, output head and image encoder."""
        return sum(count * width for count, width in self._block_parts(self._routed_parameters))

    @property
    def head_bytes(self) -> float:
        """Bytes of the output head; the input embedding, where it is another, has as many."""
        return self.head_parameters * self._embedding_width

    @property
    def expert_bytes(self) -> float:
        """Bytes of one routed expert in all layers; of the MLPs for a dense model."""
        return self.expert_parameters * (self._expert_width if self.experts > 1 else self._mlp_width)

    @property
    def vision_bytes(self) -> int:
        """Bytes of the image encoder."""
        return self.vision_parameters * VISION_DTYPE_BYTES

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers that keep them while the context grows.

        A sliding window of 1024 tokens or more counts as if it had no end.
        """
        return (self.attention_layers - self._short_window_layers) * self._kv_bytes_per_layer

    @property
    def moved_state_bytes_per_sequence(self) -> int:
        """Bytes that an iteration moves of what a sequence keeps whatever its length.

        It reads the keys and values of full short windows, and reads and writes Mamba states. They divide over
        tensor-parallel GPUs as the heads do.
        """
        return self._window_bytes + (2 * self.mamba.bytes_per_sequence if self.mamba else 0)

    # --------------------------------------------------------------------------------------------------- operations

    @property
    def fp8_share(self) -> float:
        """Share of a token's matrix operations that are in FP8 where the GPU can: those on weights of one byte."""
        return self._multiplied_share(lambda width: width == 1)

    @property
    def narrow_share(self) -> float:
        """Share of a token's matrix operations that are on weights of less than a byte."""
        return self._multiplied_share(lambda width: width < 1)

    @property
    def attention_flop_per_pair(self) -> int:
        """Operations of a query with one key over all layers; short windows, which do not grow, are left out."""
        layers = self.attention_layers - self._short_window_layers
        if self.latent:
            return layers * self.latent.flop_per_pair(self.heads, self.head_dim)
        return FLOP_PER_PAIR_CHANNEL * layers * self.heads * self.head_dim

    # --------------------------------------------------------------------------------------------------------------

    def _multiplied_share(self, has: Callable[[float], bool]) -> float:
        parts = [
            *self._block_parts(self.experts_per_token * self.expert_parameters if self.experts > 1 else 0),
            (self.head_parameters, self._embedding_width),
        ]
        return sum(count for count, width in parts if has(width)) / sum(count for count, _ in parts)

    @property
    def _embedding_width(self) -> float:
        return self.embedding_dtype_bytes or self.dtype_bytes

    @property
    def _expert_width(self) -> float:
        return self.expert_dtype_bytes or self.dtype_bytes

    @property
    def _mlp_width(self) -> float:
        return self.mlp_dtype_bytes or self.dtype_bytes

    @property
    def _short_window_layers(self) -> int:
        return self.window_layers if self.window_tokens < SHORT_WINDOW_TOKENS else 0

    @property
    def _kv_bytes_per_layer(self) -> int:
        elements = self.latent.cached_elements if self.latent else 2 * self.kv_heads * self.head_dim
        return elements * self.kv_dtype_bytes

    @property
    def _window_bytes(self) -> int:
        return self._short_window_layers * self.window_tokens * self._kv_bytes_per_layer

    def _mlp_parameters(self, width: int, layers: int) -> int:
        return (3 if self.gated else 2) * self.hidden * width * layers

    @property
    def _routed_parameters(self) -> int:
        return self.experts * self.expert_parameters if self.experts > 1 else 0

    @property
    def _unrouted_parameters(self) -> int:
        """Parameters of dense MLPs and shared experts."""
        if self.experts == 1:
            return self.expert_parameters
        shared = self._mlp_parameters(self.shared_intermediate, self.moe_layers)
        return shared + self._mlp_parameters(self.dense_intermediate, self.dense_layers)

    @property
    def _other_parameters(self) -> int:
        """Parameters of attention, Mamba, routers and norms."""
        mlps = self._unrouted_parameters + self._routed_parameters
        return self.parameters - self.lookup_parameters - self.head_parameters - mlps

    def _block_parts(self, routed: int) -> tuple[tuple[int, float], ...]:
        """Parameters of the blocks and the bytes of each, with so many of routed experts."""
        return (
            (self._other_parameters, self.dtype_bytes),
            (self._unrouted_parameters, self._mlp_width),
            (routed, self._expert_width),
        )
