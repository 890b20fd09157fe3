"""Several agents on the same held-out traffic."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.progress import Progress

from ..agents.base import Agent, Task
from ..agents.registry import candidates_of, is_registered, make_agent, scenario_for
from ..envs.cluster_env import LLMClusterEnv
from ..envs.scenario import Scenario
from ..simulator.errors import InputError
from .results import Episode, Evaluation
from .rollout import play
from .seeds import held_out_seeds
from .splits import Split
from .tune import ROUNDS, thinned, tuned, tuning_episodes


def check(scenario: Scenario, names: Sequence[str], reference: str | None = None) -> None:
    """Raises :class:`InputError` if an agent does not exist or fit, before anything is played or written."""
    if not names or len(set(names)) != len(names):
        raise InputError("agents", f"{','.join(names) or 'none'} given", "Name at least one agent, and each once")
    task = Task.of(LLMClusterEnv(scenario))
    for name in names:
        # Those that are registered fit everywhere, and some measure much before they are there.
        if not is_registered(name):
            make_agent(name, task)
    titles = dict.fromkeys([*names, *(Path(name).name for name in names)])
    if reference is not None and reference not in titles:
        raise InputError("reference", f"'{reference}' is not among the agents", f"Use one of {', '.join(names)}")


def evaluate(
    scenario: Scenario,
    names: Sequence[str],
    episodes: int,
    seed: int,
    progress: Progress,
    split: Split | None = None,
    warmup_s: int = 120,
    candidates: int | None = None,
) -> tuple[Evaluation, dict[str, str]]:
    """Evaluates agents on common random numbers: every agent meets the same traffic, budgets and start times.

    Args:
        scenario: The scenario.
        names: Agents: names, or folders that training wrote.
        episodes: Held-out episodes per agent.
        seed: Seed of the episodes.
        progress: Shows how far it is.
        split: A trace cut into three; the scenario's own workload by default.
        warmup_s: Seconds that summaries leave out at the start of each episode.
        candidates: Tunes hastily: each tuned agent among so many of its candidates, on one validation episode.

    Returns:
        The evaluation, and notes: which candidate of a tuned agent was best on validation traffic.

    Raises:
        InputError: An agent does not exist or does not fit, or a number is out of range.
    """
    if episodes < 1:
        raise InputError("episodes", f"is {episodes}", "Give at least 1")
    check(scenario, names)
    began = time.perf_counter()
    validation = LLMClusterEnv(split.scenario("validation") if split else scenario)
    env = LLMClusterEnv(split.scenario("held_out") if split else scenario)
    warmup_s = min(warmup_s, env.scenario.horizon_s // 4)
    rounds = ROUNDS if candidates is None else (1,)
    notes: dict[str, str] = {}
    agents: dict[str, Agent] = {}
    arenas: dict[str, LLMClusterEnv] = {}
    for name in names:
        # The router that one agent needs is no option of the others.
        needed = scenario_for(name, env.scenario)
        arenas[name] = env if needed is env.scenario else LLMClusterEnv(needed)
        task = Task.of(arenas[name])
        found = candidates_of(name, task)
        if found is None:
            agents[name] = make_agent(name, task)
            continue
        found = thinned(found, candidates)
        bar = progress.add_task(f"tuning {name}", total=tuning_episodes(len(found), rounds))
        notes[name], agents[name] = tuned(validation, found, seed, partial(progress.advance, bar), rounds)
    titles = {name: Path(name).name if Path(name).is_dir() else name for name in agents}
    if len(set(titles.values())) < len(titles):
        titles = {name: name for name in agents}
    seeds = held_out_seeds(seed, episodes)
    playing = progress.add_task("evaluating", total=len(seeds) * len(agents))
    played: list[Episode] = []
    for name, agent in agents.items():
        for episode_seed in seeds:
            played.append(play(arenas[name], agent, titles[name], episode_seed, warmup_s))
            progress.advance(playing)
    foreseen = env.perception.clairvoyant
    clairvoyant = frozenset(titles[n] for n, a in agents.items() if foreseen or getattr(a, "clairvoyant", False))
    workload = split.name if split else "the scenario's own"
    wall_s = time.perf_counter() - began
    return Evaluation(env.scenario.name, workload, tuple(titles.values()), clairvoyant, tuple(played), wall_s), notes
