"""Training with Stable-Baselines3: resumable after a kill, with TensorBoard logs and checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import torch
from gymnasium.wrappers import TransformReward
from rich.console import Console
from rich.progress import Progress
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from ..agents.learned import network_spec, save_agent
from ..agents.policy import MaskableSlotPolicy, SlotNetwork, SlotPolicy
from ..envs.cluster_env import LLMClusterEnv
from ..envs.scenario import Scenario
from ..simulator.errors import InputError
from ..simulator.files import whole
from .output import progress_bar
from .seeds import training_seed

ALGORITHMS: dict[str, tuple[type[Any], type[Any]]] = {
    "ppo": (PPO, SlotPolicy),
    "maskable-ppo": (MaskablePPO, MaskableSlotPolicy),
}
CHECKPOINT, CONFIG = "checkpoint.zip", "config.json"


@dataclass(frozen=True)
class PpoSettings:
    """Hyperparameters of PPO (Schulman et al. 2017), Stable-Baselines3's names; chosen by hand."""

    n_envs: int = 8
    n_steps: int = 64
    batch_size: int = 128
    n_epochs: int = 5
    learning_rate: float = 1e-3
    final_learning_rate: float = 5e-5
    gamma: float = 0.95
    gae_lambda: float = 0.9
    clip_range: float = 0.2
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float = 0.03


@dataclass(frozen=True)
class TrainConfig:
    """What makes a training run; a run resumes only with an equal one (the number of steps may grow).

    Attributes:
        algo: ``ppo`` or ``maskable-ppo``.
        scenario: The scenario, as :func:`load_scenario` takes it, with its workload.
        timesteps: Environment steps in all.
        seed: Seed of networks and traffic.
        settings: Hyperparameters.
        parallel: Steps every environment in a process of its own.
    """

    algo: str
    scenario: Scenario
    timesteps: int
    seed: int = 0
    settings: PpoSettings = field(default_factory=PpoSettings)
    parallel: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot be run, before anything is written."""
        if self.algo not in ALGORITHMS:
            raise InputError("algo", f"'{self.algo}' is unknown", f"Use one of {', '.join(ALGORITHMS)}")
        if self.timesteps < 1:
            raise InputError("timesteps", f"is {self.timesteps}", "Give at least 1")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "algo": self.algo,
            "scenario": self.scenario.model_dump(mode="json"),
            "seed": self.seed,
            "settings": asdict(self.settings),
        }


def use_one_thread() -> None:
    """Keeps torch to one thread in this process: the network is small, and more threads only wait for each other."""
    torch.set_num_threads(1)


def make_vec(config: TrainConfig) -> VecEnv:
    """The training environments, each with its own traffic."""

    def make() -> gym.Env[Any, Any]:
        # Discounted returns are then about 1, which the critic learns far sooner; logs show the true rewards.
        scale = 1.0 - config.settings.gamma
        return TransformReward(Monitor(LLMClusterEnv(config.scenario)), lambda reward: scale * float(reward))

    count = config.settings.n_envs
    vec: VecEnv = SubprocVecEnv([make] * count) if config.parallel else DummyVecEnv([make] * count)
    vec.seed(training_seed(config.seed))
    return vec


class _Checkpoints(BaseCallback):
    """Moves the bar, and writes a checkpoint every so many steps, whole or not at all."""

    def __init__(self, folder: Path, every: int, progress: Progress, total: int) -> None:
        super().__init__()
        self._folder, self._every, self._progress = folder, every, progress
        self._task = progress.add_task("training", total=total)
        self._next = 0

    def _on_training_start(self) -> None:
        self._next = self.num_timesteps + self._every

    def _on_step(self) -> bool:
        buffer = self.model.ep_info_buffer
        rewards = [episode["r"] for episode in buffer] if buffer else []
        mean = f"mean reward {sum(rewards) / len(rewards):8.1f}" if rewards else ""
        self._progress.update(self._task, completed=self.num_timesteps, description=f"training {mean}")
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps >= self._next:
            save_checkpoint(self.model, self._folder)
            self._next = self.num_timesteps + self._every


def save_checkpoint(model: BaseAlgorithm, folder: Path) -> None:
    """Writes the whole training state, or leaves the old one."""
    partial = folder / f"partial-{CHECKPOINT}"
    model.save(partial)
    partial.replace(folder / CHECKPOINT)


def train(config: TrainConfig, folder: Path, console: Console, checkpoint_every: int = 20_000) -> dict[str, Any]:
    """Trains an agent into ``folder``, or goes on where an earlier run of the same configuration stopped.

    Args:
        config: The run.
        folder: Where to; holds ``agent.json`` and ``policy.safetensors`` in the end, which ``evaluate`` takes.
        console: Where progress goes.
        checkpoint_every: Steps between checkpoints.

    Returns:
        Steps done in all and in this call, and the folder.

    Raises:
        InputError: The scenario's workload does not hold, or the folder holds another run.
    """
    LLMClusterEnv(config.scenario).reset(seed=0)  # raises what is wrong with the workload, before anything is written
    _claim(config, folder)
    algorithm, policy = ALGORITHMS[config.algo]
    vec = make_vec(config)
    try:
        model = _model(config, folder, algorithm, policy, vec)
        before = model.num_timesteps
        with progress_bar(console) as progress:
            if before < config.timesteps:
                callback = _Checkpoints(folder, checkpoint_every, progress, config.timesteps)
                model.learn(
                    config.timesteps - before, callback=callback, reset_num_timesteps=False, tb_log_name=config.algo
                )
                save_checkpoint(model, folder)
    finally:
        vec.close()
    actor = cast(SlotNetwork, model.policy.mlp_extractor).actor
    save_agent(folder, actor, {**config.as_dict(), "timesteps": model.num_timesteps})
    return {"timesteps": model.num_timesteps, "timesteps_now": model.num_timesteps - before, "folder": str(folder)}


def _claim(config: TrainConfig, folder: Path) -> None:
    """Makes ``folder`` the run's own, or finds that it is already."""
    path = folder / CONFIG
    mine = config.as_dict()
    if path.exists():
        try:
            theirs = json.loads(path.read_text())
        except ValueError as fault:
            raise InputError(str(path), "is damaged", "Remove the folder or choose another --out") from fault
        if theirs != mine:
            other = [key for key in mine if theirs.get(key) != mine[key]]
            raise InputError(str(folder), f"holds a run with another {', '.join(other)}", "Choose another --out")
        return
    if folder.exists() and any(folder.iterdir()):
        raise InputError(str(folder), "is not empty and holds no training run", "Choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        partial.write_text(json.dumps(mine, indent=1))


def _model(config: TrainConfig, folder: Path, algorithm: type[Any], policy: type[Any], vec: VecEnv) -> BaseAlgorithm:
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        try:
            loaded: BaseAlgorithm = algorithm.load(checkpoint, env=vec, device="cpu")
        except (ValueError, RuntimeError, EOFError, KeyError) as fault:
            raise InputError(str(checkpoint), f"is damaged ({fault})", "Remove it to start again") from fault
        loaded.set_random_seed(training_seed(config.seed, loaded.num_timesteps))
        return loaded
    torch.manual_seed(config.seed)
    settings = asdict(config.settings)
    del settings["n_envs"]
    first, last = settings["learning_rate"], settings.pop("final_learning_rate")
    settings["learning_rate"] = LinearSchedule(first, last, 1.0)
    network = network_spec(LLMClusterEnv(config.scenario)).as_dict()
    made: BaseAlgorithm = algorithm(
        policy,
        vec,
        seed=training_seed(config.seed),
        device="cpu",
        verbose=0,
        tensorboard_log=str(folder / "tensorboard"),
        policy_kwargs={"network": network},
        **settings,
    )
    return made
