"""The configuration of a deployment: one TOML file for the loop and what it talks to."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..envs.scenario import explain, load_scenario
from ..files import read_toml
from ..simulator.errors import InputError
from .gateway.config import GatewayConfig
from .site import SourceSpec

EXAMPLE = "example.toml"


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SlotConfig(_Spec):
    """One slot of the scenario as it really is: some GPUs, and the server that runs on them."""

    name: str = Field(description="Name of the slot in the scenario, such as `row0/rack0/server0/slot0`.")
    gpus: tuple[str, ...] = Field(min_length=1, description="Its GPUs, by UUID or by index, as text.")
    url: str = Field(pattern=r"^https?://", description="Where its inference server listens.")
    model: str = Field(description="Model that it holds at the start, by its name in the catalogue.")
    served_name: str | None = Field(default=None, description="The server's own name of the model, where it differs.")
    api_key_file: Path | None = Field(default=None, description="File with the key that the server asks for.")


class KeeperConfig(_Spec):
    """The keeper, which alone writes limits."""

    socket: Path = Field(default=Path("/run/llmcluster/keeper.sock"), description="Its Unix socket.")
    allow_uids: tuple[int, ...] = Field(default=(), description="Users who may connect; by default the keeper's own.")
    lease_s: float = Field(
        default=5.0, gt=0, description="Limits are restored after so long without a sign of the loop."
    )


class LimitsConfig(_Spec):
    """What is never passed, whatever the agent asks for."""

    budget_w: SourceSpec | None = Field(
        default=None, description="Power of all GPUs at most, watts; by default the sum of their highest limits."
    )
    floor_w: float = Field(default=0.0, ge=0, description="Lowest limit of a GPU, watts; at least its data sheet's.")
    ceiling_w: float | None = Field(default=None, gt=0, description="Highest limit of a GPU; at most its data sheet's.")
    default_w: float | None = Field(
        default=None, gt=0, description="Limit of a GPU in a fallback; by default what it had when the loop began."
    )
    max_rise_w: float = Field(default=200.0, gt=0, description="A GPU's limit rises by this much a decision at most.")
    max_fall_w: float = Field(
        default=400.0, gt=0, description="It falls by this much at most; for the budget it falls as far as it must."
    )
    hysteresis_w: float = Field(default=5.0, ge=0, description="Smaller changes of a GPU's limit are not written.")
    min_interval_s: float = Field(
        default=2.0, ge=0, description="Time between two writes of a GPU's limit; the budget does not wait."
    )

    @model_validator(mode="after")
    def _budget_is_power(self) -> LimitsConfig:
        if self.budget_w is not None and self.budget_w.lowest is not None and self.budget_w.lowest <= 0:
            raise ValueError(f"budget_w: {self.budget_w.lowest:g} W is no power; give some watts")
        return self


class TelemetryConfig(_Spec):
    """Where readings come from, and when they are too old."""

    source: Literal["nvml", "dcgm"] = Field(default="nvml", description="The driver itself, or DCGM-exporter.")
    dcgm_url: str = Field(default="http://127.0.0.1:9400/metrics", description="Where DCGM-exporter listens.")
    power: Literal["as-trained", "energy"] = Field(
        default="as-trained",
        description="Power of a second: as the simulator's meters of that GPU tell it (a mean where the GPU averages, "
        "else the instant), or always from the energy counter.",
    )
    timeout_s: float = Field(default=0.5, gt=0, le=5, description="A source that takes longer has not answered.")
    stale_s: float = Field(default=5.0, gt=0, description="The last reading holds for so long.")


class AuditConfig(_Spec):
    """The log of every decision and every write."""

    path: Path = Field(default=Path("audit.jsonl"), description="JSON lines are appended to this file.")
    fsync: bool = Field(default=False, description="Whether each line is on the disk before a limit is written.")
    max_bytes: int = Field(default=64 * 2**20, ge=4096, description="Then it is renamed to `.1`, and begun anew.")
    keep: int = Field(default=5, ge=1, le=100, description="So many old ones are kept.")


class ExporterConfig(_Spec):
    """Prometheus metrics of the loop."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=9105, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")


class LauncherConfig(_Spec):
    """Commands that start and stop inference servers; without them slots are only put to sleep and woken."""

    load: tuple[str, ...] = Field(
        default=(),
        description="Starts a server: words; `{slot}`, `{model}`, `{gpus}`, `{port}` and `{tp}` are filled in.",
    )
    stop: tuple[str, ...] = Field(default=(), description="Stops it.")
    dry: bool = Field(default=True, description="Whether commands are only logged.")
    timeout_s: float = Field(default=60.0, gt=0, description="A command that takes longer has failed.")
    ready_s: float = Field(default=600.0, gt=0, description="A start that takes longer has failed.")

    @model_validator(mode="after")
    def _both_or_neither(self) -> LauncherConfig:
        if bool(self.load) != bool(self.stop):
            raise ValueError("give both load and stop, or neither")
        return self


class SiteConfig(_Spec):
    """What the scenario observes of the world around the cluster."""

    outside_c: SourceSpec | None = Field(default=None, description="Outside temperature, °C.")
    inlet_c: SourceSpec | None = Field(default=None, description="Inlet temperature of the servers, °C.")
    price_per_kwh: SourceSpec | None = Field(default=None, description="Price of electricity.")
    carbon_g_per_kwh: SourceSpec | None = Field(default=None, description="Its carbon intensity, grams of CO₂.")


class DeployConfig(_Spec):
    """A deployment: what of a scenario is where."""

    scenario: str = Field(description="Name or TOML file of the scenario that the agent was trained on.")
    slots: tuple[SlotConfig, ...] = Field(min_length=1, description="All slots of the scenario.")
    gateway: GatewayConfig = Field(description="The gateway: where it listens, who may use it, its backends.")
    gateway_at: str | None = Field(
        default=None, pattern=r"^https?://", description="Where the loop finds the gateway, if it is on another host."
    )
    keeper: KeeperConfig = KeeperConfig()
    limits: LimitsConfig = LimitsConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    audit: AuditConfig = AuditConfig()
    exporter: ExporterConfig = ExporterConfig()
    launcher: LauncherConfig = LauncherConfig()
    site: SiteConfig = SiteConfig()
    forecaster: str | None = Field(default=None, description="In place of the scenario's; `oracle` cannot be had.")

    @model_validator(mode="after")
    def _each_once(self) -> DeployConfig:
        for what, names in (
            ("slots[].name", [slot.name for slot in self.slots]),
            ("slots[].gpus", [gpu for slot in self.slots for gpu in slot.gpus]),
            ("slots[].url", [slot.url.rstrip("/") for slot in self.slots]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what}: {twice[0]!r} is given twice; give each once")
        return self

    @property
    def gateway_url(self) -> str:
        """Where the gateway is."""
        host = f"[{self.gateway.host}]" if ":" in self.gateway.host else self.gateway.host
        return self.gateway_at or f"http://{host}:{self.gateway.port}"

    def keeper_arguments(self) -> list[str]:
        """The command line of the keeper: it reads no configuration, so as to need nothing that does."""
        ceiling_w = [] if self.limits.ceiling_w is None else [f"--ceiling-w={self.limits.ceiling_w:g}"]
        return [
            f"--socket={self.keeper.socket}",
            f"--lease-s={self.keeper.lease_s:g}",
            f"--floor-w={self.limits.floor_w:g}",
            *ceiling_w,
            *(f"--allow-uid={uid}" for uid in self.keeper.allow_uids),
            *(f"--gpu={gpu}" for slot in self.slots for gpu in slot.gpus),
        ]


_Part = TypeVar("_Part", LimitsConfig, SiteConfig)


def load_config(path: Path) -> DeployConfig:
    """Reads the configuration; relative paths in it start at its folder.

    The gateway's backends are the slots, and its SLO classes the scenario's, unless the file says otherwise.

    Raises:
        InputError: There is none, or it does not hold; the message names file, field and remedy.
    """
    content, folder = read_toml(path), path.absolute().parent
    scenario = content.get("scenario")
    if isinstance(scenario, str) and scenario.endswith(".toml"):
        content["scenario"] = str(folder / scenario)
    try:
        config = DeployConfig.model_validate(content | {"gateway": _gateway(content)})
    except ValidationError as fault:
        remedy = "`llmcluster deploy init` writes a commented example"
        raise InputError(str(path), *explain(fault, "the configuration", remedy)) from fault
    return config.model_copy(
        update={
            "gateway": config.gateway.rooted(folder),
            "keeper": config.keeper.model_copy(update={"socket": folder / config.keeper.socket}),
            "audit": config.audit.model_copy(update={"path": folder / config.audit.path}),
            "limits": _with_files(config.limits, folder),
            "site": _with_files(config.site, folder),
        }
    )


def _gateway(content: dict[str, Any]) -> Any:
    """The table of the gateway, with what it leaves to slots and scenario."""
    given, slots = content.get("gateway", {}), content.get("slots", [])
    if not isinstance(given, dict) or not isinstance(slots, list):
        return given
    filled = dict(given)
    if "backends" not in given:
        wanted = ("name", "url", "model", "served_name", "api_key_file")
        filled["backends"] = [{k: slot[k] for k in wanted if k in slot} for slot in slots if isinstance(slot, dict)]
    if "slo" not in given and isinstance(content.get("scenario"), str):
        filled["slo"] = load_scenario(content["scenario"]).slo
    return filled


def _with_files(part: _Part, folder: Path) -> _Part:
    moved = {
        name: value.model_copy(update={"file": folder / value.file})
        for name, value in part
        if isinstance(value, SourceSpec) and value.file is not None
    }
    return part.model_copy(update=moved)


def example() -> str:
    """The commented example."""
    return resources.files(__package__).joinpath("examples", EXAMPLE).read_text(encoding="utf-8")
