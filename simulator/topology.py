"""Where things stand: facility → row → rack → server → slot → GPU.

A slot is a fixed group of GPUs of one server that can hold one model instance (tensor parallel within each stage of a
pipeline); it is the unit of control everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .breakers import BreakerSpec
from .signals import Points, ascend


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSpec(_Spec):
    """One server, or ``count`` alike."""

    gpu: str = Field(description="Name in the catalogue.")
    gpus: int = Field(default=8, ge=1, le=16, description="GPUs in the server.")
    tp: int = Field(default=1, ge=1, description="GPUs that share every layer (tensor parallelism).")
    pp: int = Field(default=1, ge=1, description="Pipeline stages; a slot has `tp` times `pp` GPUs.")
    ep: bool = Field(default=False, description="Whether experts of a mixture are spread whole over the `tp` GPUs.")
    model: str | None = Field(default=None, description="Model that the slots hold at the start.")
    role: Literal["mixed", "prefill", "decode"] = Field(
        default="mixed", description="Part in disaggregated serving; `mixed` slots do all."
    )
    initial: Literal["serving", "sleeping", "empty"] = Field(default="serving", description="State at the start.")
    inlet_c: float = Field(default=24.0, ge=-20, le=60, description="Inlet temperature at no load, °C.")
    inlet_k_per_kw: float = Field(default=0.5, ge=0, description="Rise of the inlet by the server's own heat, K/kW.")
    fan_min_m3_per_s: float = Field(
        default=0.0, ge=0, description="Air that the server's fans move at any load; above it they follow the load."
    )
    power_limit_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Power that its supplies give its GPUs, as a share of their TDPs; above it they brake. No limit.",
    )
    shed_priority: int = Field(default=0, description="Where the site sheds load, servers of lower priority go first.")
    count: int = Field(default=1, ge=1, description="Number of such servers.")

    @model_validator(mode="after")
    def _slots_fit(self) -> ServerSpec:
        if self.gpus % (self.tp * self.pp):
            fitting = ", ".join(str(n) for n in range(1, self.gpus + 1) if self.gpus % n == 0)
            slot, size = (
                (f"tp {self.tp}", "a tp") if self.pp == 1 else (f"tp {self.tp} times pp {self.pp}", "a product")
            )
            raise ValueError(
                f"{slot} cannot be laid on a server of {self.gpus} GPUs; use {size} of {fitting}, or more GPUs"
            )
        if self.model is None and self.initial != "empty":
            raise ValueError(f"initial '{self.initial}' needs a model; name one, or use initial = \"empty\"")
        return self


class RackSpec(_Spec):
    """Servers behind one breaker."""

    servers: tuple[ServerSpec, ...] = Field(min_length=1)
    breaker: BreakerSpec | None = Field(default=None, description="Its breaker; none by default.")


class RowSpec(_Spec):
    """Racks that share cooling air and a power feed."""

    racks: tuple[RackSpec, ...] = Field(min_length=1)
    power_limit_share: float | None = Field(
        default=None, gt=0, le=1, description="Power that the row's GPUs may draw, as a share of their TDPs; no limit."
    )
    brake: bool = Field(default=False, description="Whether its GPUs brake while it is above that.")
    breaker: BreakerSpec | None = Field(default=None, description="Breaker of its feed; none by default.")
    airflow_m3_per_s: float | None = Field(
        default=None, gt=0, description="Cooling air for the heat of the row's GPUs; as much as they need by default."
    )

    @model_validator(mode="after")
    def _brakes_at_a_limit(self) -> RowSpec:
        if self.brake and self.power_limit_share is None:
            raise ValueError("brake: there is no limit to be above; give power_limit_share")
        return self


class AirSpec(_Spec):
    """How the air at the inlets follows outside temperature, heat and airflow."""

    outside_rise_k: Points = Field(
        default=((15.0, 0.0), (25.0, 7.0), (40.0, 11.0)),
        min_length=1,
        description="Breakpoints `[[outside_c, rise_k], …]`: by how much outside temperature raises all inlets.",
    )
    server_rise_k: float = Field(
        default=12.0, gt=0, description="By how much servers warm the air; their fans are set to it. K."
    )
    tau_s: float = Field(default=90.0, gt=0, description="Time constant of a row's air, seconds.")

    @model_validator(mode="after")
    def _outside_ascends(self) -> AirSpec:
        ascend(self.outside_rise_k, "the outside temperatures of outside_rise_k")
        return self


class EngineSpec(_Spec):
    """Limits and policies of the serving engine, named as in vLLM where it has them."""

    max_num_seqs: int = Field(default=256, ge=1, le=4096)
    max_num_batched_tokens: int = Field(default=2048, ge=16, le=65536)
    block_size: Literal[1, 2, 4, 8, 16, 32, 64, 128, 256] = Field(default=16, description="Tokens per KV block.")
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    max_model_len: int | None = Field(default=None, ge=1, description="Context limit; the model's own by default.")
    scheduling_policy: Literal["fcfs", "priority"] = Field(default="fcfs", description="Order of the waiting queue.")
    enable_prefix_caching: bool = Field(
        default=True, description="Keep KV blocks of shared prefixes, as far as the workload says what is shared."
    )
    watermark: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the KV blocks that admission leaves free (0.01 in vLLM's V0)."
    )
    sampling: Literal["random", "greedy"] = Field(
        default="random", description="How next tokens are chosen: drawn from the likeliest, or always the likeliest."
    )
    sleep_level: Literal[1, 2] = Field(default=2, description="Weights of a sleeper: 1 in host memory, 2 dropped.")

    @model_validator(mode="after")
    def _budget_holds_decodes(self) -> EngineSpec:
        if self.max_num_batched_tokens <= self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} must exceed max_num_seqs {self.max_num_seqs}; "
                "raise the one or lower the other"
            )
        return self


class GatewaySpec(_Spec):
    """What happens to requests that fail or wait too long."""

    on_failure: Literal["fail", "retry", "restart"] = Field(
        default="retry",
        description="Requests of a slot that fails: they fail; those that streamed nothing go elsewhere; or all do.",
    )
    retries: int = Field(default=0, ge=0, le=16, description="How often a client that timed out sends again.")
    retry_backoff_s: float = Field(
        default=1.0, ge=0, le=60, description="Pause before the first retry; doubles each time."
    )


class VariantSpec(_Spec):
    """Another way to serve a model: a smaller one of its family answers in its place, or it takes fewer GPUs."""

    serves: str = Field(description="Model that requests ask for, one of the cluster's.")
    model: str | None = Field(default=None, description="Model that answers; by default the same.")
    tp: int | None = Field(
        default=None,
        ge=1,
        description="GPUs that share every layer, those left over idle; by default as the slot is laid out.",
    )

    @model_validator(mode="after")
    def _differs(self) -> VariantSpec:
        if self.model in (None, self.serves) and self.tp is None:
            raise ValueError("is what slots hold anyway; give another model, or a tp")
        return self


class ClusterSpec(_Spec):
    """The facility."""

    rows: tuple[RowSpec, ...] = Field(min_length=1)
    models: tuple[str, ...] = Field(default=(), description="Models that may be loaded; by default those in place.")
    variants: tuple[VariantSpec, ...] = Field(
        default=(), description="Other ways to serve them, which the `reconfigure` action chooses from."
    )
    air: AirSpec = AirSpec()
    engine: EngineSpec = EngineSpec()
    gateway: GatewaySpec = GatewaySpec()

    def served_models(self) -> tuple[str, ...]:
        """Names of all models that slots may hold, those of ``models`` first."""
        placed = [s.model for row in self.rows for rack in row.racks for s in rack.servers if s.model]
        return tuple(dict.fromkeys([*self.models, *placed]))


@dataclass(frozen=True)
class Slot:
    """One slot and its place.

    Attributes:
        name: ``row/rack/server/slot`` by number.
        row: Number of the row.
        rack: Number of the rack in the facility.
        server: Number of the server in the facility.
        spec: The server's specification.
        field: Where the server stands in the specification, for messages.
    """

    name: str
    row: int
    rack: int
    server: int
    spec: ServerSpec
    field: str


def lay_out(cluster: ClusterSpec) -> tuple[Slot, ...]:
    """All slots of the facility in order."""
    slots: list[Slot] = []
    racks = servers = 0
    for row_number, row in enumerate(cluster.rows):
        for rack_number, rack in enumerate(row.racks):
            for server_number, spec in enumerate(rack.servers):
                field = f"cluster.rows[{row_number}].racks[{rack_number}].servers[{server_number}]"
                for _ in range(spec.count):
                    for number in range(spec.gpus // (spec.tp * spec.pp)):
                        name = f"row{row_number}/rack{racks}/server{servers}/slot{number}"
                        slots.append(Slot(name, row_number, racks, servers, spec, field))
                    servers += 1
            racks += 1
    return tuple(slots)
