"""Which scenarios can be deployed: those of which a real cluster tells everything that an agent observes."""

from __future__ import annotations

from pathlib import Path

from ..envs.cluster_env import LLMClusterEnv
from ..envs.scenario import Scenario
from ..simulator.errors import InputError
from .config import DeployConfig, load_config

REFUSED_GROUPS = {
    "place": "nobody asks a real gateway for a slot",
    "reconfigure": "no launcher changes model or tensor parallelism of a slot for the agent",
}


def checked_config(path: Path) -> DeployConfig:
    """Reads a configuration, and holds it against its scenario.

    Raises:
        InputError: It does not hold, or the scenario cannot be deployed.
    """
    config = load_config(path)
    env = LLMClusterEnv(config.scenario, forecaster="none")
    check_deployable(env.scenario, config.scenario)
    check_slots(config, env, str(path))
    order = {name: i for i, name in enumerate(env.fleet.slots)}
    return config.model_copy(update={"slots": tuple(sorted(config.slots, key=lambda slot: order[slot.name]))})


def check_deployable(scenario: Scenario, where: str) -> None:
    """Refuses a scenario that has what no real cluster tells, or what nothing carries out.

    Raises:
        InputError: It names the first such thing.
    """
    remedy = "Train on a scenario without, and deploy that"
    for group, why in REFUSED_GROUPS.items():
        if group in scenario.actions.groups:
            raise InputError(f"{where}: actions.groups", f"'{group}' cannot be deployed: {why}", remedy)
    if scenario.tenants is not None:
        raise InputError(f"{where}: tenants", "no meter tells of foreign machines on slots", remedy)
    if scenario.instances:
        raise InputError(f"{where}: instances", "nobody asks a real gateway for a slot", remedy)
    for row in scenario.cluster.rows:
        for rack in row.racks:
            if roles := {server.role for server in rack.servers} - {"mixed"}:
                problem = f"a server has the role '{roles.pop()}', and the gateway knows no disaggregated serving"
                raise InputError(f"{where}: cluster.rows", problem, remedy)


def check_slots(config: DeployConfig, env: LLMClusterEnv, where: str) -> None:
    """Refuses a configuration that does not fit its scenario.

    Raises:
        InputError: Slots are missing or unknown, have another number of GPUs, or hold a model that cannot be there; or
            the scenario observes what the configuration does not give.
    """
    slots = {slot.name: slot for slot in env.blueprint.slots}
    given = {slot.name: i for i, slot in enumerate(config.slots)}
    if missing := [name for name in slots if name not in given]:
        raise InputError(f"{where}: slots", f"'{missing[0]}' of the scenario is missing", "Add [[slots]] for each slot")
    for name, i in given.items():
        if name not in slots:
            known = ", ".join(slots)
            raise InputError(f"{where}: slots[{i}].name", f"the scenario has no '{name}'", f"Use {known}")
        slot, own = slots[name], config.slots[i]
        if len(own.gpus) != (size := slot.spec.tp * slot.spec.pp):
            problem = f"{len(own.gpus)} GPUs are given, and the slot has {size}"
            raise InputError(f"{where}: slots[{i}].gpus", problem, f"Give {size}, or deploy another scenario")
        if own.model not in env.fleet.models:
            known = ", ".join(env.fleet.models)
            raise InputError(f"{where}: slots[{i}].model", f"the scenario has no '{own.model}'", f"Use one of {known}")
        if not env.fleet.fits[env.fleet.slots.index(name), env.fleet.models.index(own.model)]:
            raise InputError(f"{where}: slots[{i}].model", f"'{own.model}' does not fit there", "Name one that does")
    scenario, site = env.scenario, config.site
    airy = any(row.airflow_m3_per_s for row in scenario.cluster.rows)
    for name, observed in (
        ("outside_c", scenario.outside_c is not None),
        ("inlet_c", scenario.outside_c is not None or airy),
        ("price_per_kwh", scenario.grid.price_per_kwh is not None),
        ("carbon_g_per_kwh", scenario.grid.carbon_g_per_kwh is not None),
    ):
        if observed and getattr(site, name) is None:
            remedy = f"Give it under [site]: {name} = 25.0, or {{ file = PATH }}"
            raise InputError(f"{where}: site.{name}", "the scenario observes it", remedy)
