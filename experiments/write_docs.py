"""Rebuilds ``docs/reference.md`` from the code: scenarios, observation, action, reward, command line.

Run as ``python -m llmcluster.experiments.write_docs``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel

from ..agents.registry import AGENTS, CANDIDATES
from ..deploy.config import (
    AuditConfig,
    DeployConfig,
    ExporterConfig,
    KeeperConfig,
    LauncherConfig,
    LimitsConfig,
    SiteConfig,
    SlotConfig,
    TelemetryConfig,
)
from ..deploy.gateway.config import BackendSpec, GatewayConfig, HealthSpec, LimitSpec, QueueSpec, TimeoutSpec
from ..deploy.sidecar import SidecarConfig
from ..deploy.site import SourceSpec
from ..envs import reward
from ..envs.cluster_env import LLMClusterEnv
from ..envs.features import Feature, senses_of
from ..envs.scenario import ActionSpec, RewardSpec, Scenario, load_scenario, scenario_names
from ..envs.spec import SloSpec
from ..envs.world_spec import BudgetSpec, EventSpec, GridSpec, InstancesSpec
from ..simulator.breakers import BreakerSpec
from ..simulator.catalog import Catalog
from ..simulator.faults import RandomFault, ScheduledFault
from ..simulator.files import whole
from ..simulator.protection import ShedSpec
from ..simulator.signals import SignalSpec
from ..simulator.tenants import TenantsSpec
from ..simulator.topology import AirSpec, ClusterSpec, EngineSpec, RackSpec, RowSpec, ServerSpec, VariantSpec
from ..simulator.workload.spec import StreamSpec
from . import deploy_verbs

SCENARIO_PARTS: dict[str, type[BaseModel]] = {
    "the scenario": Scenario,
    "cluster": ClusterSpec,
    "cluster.air": AirSpec,
    "cluster.rows[]": RowSpec,
    "cluster.rows[].racks[]": RackSpec,
    "cluster.rows[].breaker, cluster.rows[].racks[].breaker": BreakerSpec,
    "cluster.rows[].racks[].servers[]": ServerSpec,
    "cluster.variants[]": VariantSpec,
    "cluster.engine": EngineSpec,
    "workload, workload.streams[]": StreamSpec,
    "slo.NAME": SloSpec,
    "budget": BudgetSpec,
    "budget.shed": ShedSpec,
    "events[]": EventSpec,
    "grid": GridSpec,
    "outside_c, grid.price_per_kwh, grid.carbon_g_per_kwh": SignalSpec,
    'faults[], kind = "scheduled"': ScheduledFault,
    'faults[], kind = "random"': RandomFault,
    "instances[]": InstancesSpec,
    "tenants": TenantsSpec,
    "actions": ActionSpec,
    "reward": RewardSpec,
}
DEPLOY_PARTS: dict[str, type[BaseModel]] = {
    "the configuration": DeployConfig,
    "slots[]": SlotConfig,
    "gateway": GatewayConfig,
    "gateway.backends[]": BackendSpec,
    "gateway.timeouts": TimeoutSpec,
    "gateway.limits": LimitSpec,
    "gateway.queue": QueueSpec,
    "gateway.health": HealthSpec,
    "gateway.slo.NAME": SloSpec,
    "keeper": KeeperConfig,
    "limits": LimitsConfig,
    "limits.budget_w, site.NAME": SourceSpec,
    "telemetry": TelemetryConfig,
    "audit": AuditConfig,
    "exporter": ExporterConfig,
    "launcher": LauncherConfig,
    "site": SiteConfig,
}
MAX_DEFAULT = 60
ROOT = Path(__file__).parent.parent


def reference_page() -> str:
    """The page as Markdown."""
    env = LLMClusterEnv("default")
    lines = [
        "# Reference",
        "",
        "<!-- Written by `make docs`; do not edit by hand. -->",
        "",
        inspect.cleandoc(LLMClusterEnv.__doc__ or "").replace("\n## ", "\n### ").replace("``", "`"),
        "",
        "## Observation features",
        "",
        "As the default scenario has them; other scenarios add features, see there. A value is the reading divided by "
        "its scale; power and caps of a slot are divided by the slot's TDP.",
        "",
        "### `slots`, for each slot",
        "",
        *_features(env.observations.slot_features),
        "",
        "### `cluster`",
        "",
        *_features(env.observations.cluster_features),
        "",
        "### `forecast`, for each slot and then for the cluster",
        "",
        ", ".join(f"`{name}`" for name in env.observations.forecast_features),
        "",
        "## Reward terms",
        "",
        "| term | meaning |",
        "|---|---|",
        *(f"| `{name}` | {_first_line(term)} |" for name, term in reward.TERMS.items()),
        "",
        "## Agents",
        "",
        "| name | what it does |",
        "|---|---|",
        *(f"| `{name}` | {_first_line(agent)} |" for name, agent in AGENTS.items()),
        "| `best-constant` | The best constant action of a grid. |",
        "| a folder | What `llmcluster train` wrote. |",
        "",
        f"{', '.join(f'`{name}`' for name in CANDIDATES)} have parameters; an evaluation first "
        "chooses them on validation traffic.",
        "",
        "## Scenarios",
        "",
        *_scenarios(),
        "## Scenario files",
        "",
        "TOML with these keys; a trace or generated traffic is described under `workload`.",
        "",
        *_keys(SCENARIO_PARTS),
        "## Deployment",
        "",
        "What `llmcluster deploy` does; [deploy.md](deploy.md) says how it goes together.",
        "",
        "| verb | what it does |",
        "|---|---|",
        *_deploy_verbs(),
        "",
        "TOML with these keys; relative paths start at the folder of the file. The gateway's backends are the slots, "
        "and its SLO classes the scenario's, unless it says otherwise. `python -m llmcluster.deploy.gateway` reads the "
        "gateway's keys from a file of its own, too, and then needs all of them.",
        "",
        *_keys(DEPLOY_PARTS),
        "## Sidecar",
        "",
        "What `make_sidecar` takes; the first five are also options of `llmcluster deploy sidecar`. Timeouts "
        "and limits are as the gateway's, but for a body of 4 MiB.",
        "",
        *_keys({"sidecar": SidecarConfig}),
        "## Catalogue",
        "",
        *_catalogue(),
    ]
    return "\n".join(lines) + "\n"


def _features(features: Iterable[Feature]) -> list[str]:
    rows = [
        f"| `{f.name}` | {f.unit or '–'} | {'TDP' if f.scale != f.scale else f'{f.scale:g}'} |"  # NaN marks the TDP
        for f in features
    ]
    return ["| feature | unit | scale |", "|---|---|---:|", *rows]


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]


def _scenarios() -> list[str]:
    table, lines = ["| scenario | what it teaches |", "|---|---|"], []
    for name in scenario_names():
        scenario: Scenario = load_scenario(name)
        groups = ", ".join(f"`{g}`" for g in scenario.actions.groups)
        env = LLMClusterEnv(scenario)
        pace = f"a decision every {scenario.tick_s} s, {scenario.horizon_s} s an episode"
        facts = f"{len(env.fleet)} slots, {pace}; actions: {groups}."
        more = senses_of(scenario, env.fleet)
        added = [f"`{f.name}`" for sense in (*more.slots, *more.cluster) for f in sense.features]
        if added:
            facts += f" It adds the features {', '.join(added)}."
        text = scenario.description.strip().replace("\n", " ")
        table.append(f"| [`{name}`](#{name}) | {_lesson(text)} |")
        lines += [f"### `{name}`", "", text, "", facts, ""]
    return [*table, "", *lines]


def _lesson(description: str) -> str:
    """What a description says that the scenario teaches; all of it where it does not say."""
    _, teaches, lesson = description.partition("t teaches ")
    return lesson[:1].upper() + lesson[1:] if teaches else description


def _deploy_verbs() -> list[str]:
    return [
        f"| `{command.name}` | {_first_line(command.callback)} |" for command in deploy_verbs.app.registered_commands
    ]


def _keys(parts: Mapping[str, type[BaseModel]]) -> list[str]:
    lines = []
    for title, spec in parts.items():
        rows = []
        for name, field in spec.model_fields.items():
            if field.exclude:
                continue
            default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
            shown = default if len(default) < MAX_DEFAULT else "see its own table"
            rows.append(f"| `{name}` | {shown} | {field.description or ''} |")
        lines += [f"### `{title}`", "", "| key | default | meaning |", "|---|---|---|", *rows, ""]
    return lines


def _catalogue() -> list[str]:
    catalog = Catalog.builtin()
    gpus = [
        f"| {g.name} | {g.memory_bytes / 1e9:.0f} | {g.memory_bytes_per_s / 1e12:.2f} | "
        f"{g.bf16_flop_per_s / 1e12:.0f} | {g.cap_min_w:.0f}–{g.cap_max_w:.0f} | {'yes' if g.calibrated else 'no'} |"
        for g in catalog.gpus.values()
    ]
    models = [
        f"| {m.name} | {m.weight_bytes / 1e9:.1f} | {m.kv_bytes_per_token / 1024:.0f} |"
        for m in catalog.models.values()
    ]
    return [
        "| GPU | memory, GB | bandwidth, TB/s | bf16, TFLOP/s | cap, W | calibrated |",
        "|---|---:|---:|---:|---:|---|",
        *gpus,
        "",
        "| model | weights, GB | KV cache, KiB per token |",
        "|---|---:|---:|",
        *models,
    ]


def write_docs() -> None:
    """Writes the page, whole or not at all."""
    with whole(ROOT / "docs" / "reference.md") as partial:
        partial.write_text(reference_page())


if __name__ == "__main__":
    write_docs()
