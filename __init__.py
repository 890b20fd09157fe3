"""llmcluster: a Gymnasium environment over a simulator of a multi-GPU LLM-serving cluster.

Importing it registers ``LLMCluster-v0`` and ``LLMClusterSmall-v0``; with ``gym.make("llmcluster:LLMCluster-v0")``
Gymnasium does so itself.
"""

from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

if TYPE_CHECKING:
    from .envs.cluster_env import LLMClusterEnv
    from .envs.scenario import Scenario, load_scenario, scenario_names
    from .envs.vector_env import LLMClusterVectorEnv
    from .simulator.errors import InputError

__version__ = "0.1.0"
__all__ = ["InputError", "LLMClusterEnv", "LLMClusterVectorEnv", "Scenario", "load_scenario", "scenario_names"]

_HOMES = {
    "InputError": "simulator.errors",
    "LLMClusterEnv": "envs.cluster_env",
    "LLMClusterVectorEnv": "envs.vector_env",
    "Scenario": "envs.scenario",
    "load_scenario": "envs.scenario",
    "scenario_names": "envs.scenario",
}


def _register() -> None:
    """Enters the environments; Gymnasium truncates them by the scenario's horizon, so no time limit is given here."""
    for name, scenario in (("LLMCluster-v0", "default"), ("LLMClusterSmall-v0", "small")):
        if name not in registry:
            register(
                name,
                entry_point="llmcluster.envs.cluster_env:LLMClusterEnv",
                vector_entry_point="llmcluster.envs.vector_env:LLMClusterVectorEnv",
                kwargs={"scenario": scenario},
            )


def __getattr__(name: str) -> Any:
    """Public names are loaded when first used, so that importing the package stays cheap."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_register()
