"""Training of networks: windows of the past, pinball loss, early stopping, and going on after a stop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InputError
from ..files import whole
from .base import QUANTILES
from .frames import FIT, VALIDATION, Floats, Frame
from .models.learned import LEVELS
from .networks.network import Network
from .telemetry import GROUPS

if TYPE_CHECKING:
    from .models.learned import Learned

Progress = Callable[[int, int, float], None]
"""Called after each pass with its number, how many there may be, and the validation loss."""
Views = Sequence[tuple[Floats, Floats]]
TOGETHER = 8
"""Frames of equal length that are validated at once."""
WARM_UP_S = 32
"""Seconds at the beginning of a window that only serve as history."""
LONGEST_GRADIENT = 1.0
PATIENT_STEPS = 40
"""Steps without a better validation that are waited for at least: a pass over a short series is a single one."""


def train(model: Learned, frames: Sequence[Frame], views: Views, rng: np.random.Generator) -> dict[str, Floats]:
    """Trains a model's network.

    Args:
        model: Says what network, and how to train it.
        frames: The series.
        views: Inputs and levels of each frame.
        rng: Source of the weights and of the order of windows.

    Returns:
        The network's weights as of its best validation.

    Raises:
        InputError: PyTorch has no such device here.
    """
    settings = model.settings
    device = torch.device(device_of(settings.device))
    seed = int(rng.integers(2**63 - 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        core = model.core(model.features, settings.hidden)
        network = Network(core, settings.hidden, model.features, views[0][1].shape[-1], settings.stride_s)
    network.to(device)
    run = _Run(network, model, _Windows(frames, views, model, FIT, device), seed)
    run.resume()
    validation = _Windows(frames, views, model, VALIDATION, device)
    with _one_thread():
        patience = max(settings.patience, -(-PATIENT_STEPS // run.windows.steps))
        while run.epoch < settings.epochs and run.stale < patience:
            run.pass_once()
            run.validate(validation.loss(network))
            if model.progress is not None:
                model.progress(run.epoch, settings.epochs, run.best_loss)
            run.save()
    return {name: value.double().cpu().numpy() for name, value in run.best.items()}


def device_of(name: str) -> str:
    """Where PyTorch computes, by a name of :data:`.models.learned.DEVICES`: ``auto`` is a GPU if it finds one.

    Raises:
        InputError: There is no such device here.
    """
    there = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not there:
        raise InputError("--device cuda", "PyTorch finds no CUDA device", "Use --device cpu")
    return "cuda" if there else "cpu"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads, and would not sum in the same order on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Windows:
    """Windows of one part of all series, whose truth before and after that part is hidden."""

    def __init__(self, frames: Sequence[Frame], views: Views, model: Learned, part: int, device: torch.device) -> None:
        self._series: list[tuple[Tensor, Tensor, Tensor]] = []
        self._starts: list[tuple[int, int, int]] = []
        self._length, self._stride = model.settings.window_s, model.settings.stride_s
        self._batch, self._blind = model.settings.batch, model.settings.blind
        read = [[LEVELS + model.covariates.index(n) for n in names if n in model.covariates] for names in GROUPS]
        self._groups = [columns for columns in read if columns]
        mean, deviation = model.weights["power_mean"], model.weights["power_deviation"]
        for frame, (inputs, levels) in zip(frames, views, strict=True):
            rows = frame.rows(part)
            seconds = np.flatnonzero(rows.any(axis=1))
            if not len(seconds):
                continue
            truth = np.where(rows[..., None], (frame.truth - mean) / deviation, np.nan)
            series = (inputs, levels, truth)
            index = len(self._series)
            self._series.append(tuple(torch.tensor(x, dtype=torch.float32, device=device) for x in series))  # type: ignore[arg-type]
            begin, end = max(int(seconds[0]) - WARM_UP_S, 0), int(seconds[-1]) + 1
            stride = self._length // 2
            for start in range(begin, max(end - self._length, begin) + stride, stride):
                for channel in range(inputs.shape[1]):
                    self._starts.append((index, min(start, max(end - self._length, begin)), channel))

    def digest(self) -> str:
        """Of all that is learnt from."""
        hashed = hashlib.sha256()
        for series in self._series:
            for values in series:
                hashed.update(values.cpu().numpy().tobytes())
        return hashed.hexdigest()

    @property
    def steps(self) -> int:
        """Batches of a pass."""
        return -(-len(self._starts) // self._batch)

    def batches(self, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs, levels and truth of windows in random order, each begun a little later or earlier than last time."""
        for chosen in np.array_split(rng.permutation(len(self._starts)), self.steps):
            inputs, levels, truth = self._gathered(chosen, rng.integers(0, self._length // 2, len(chosen)))
            if self._blind > 0 and self._groups:
                inputs = inputs * self._seen(inputs, rng)
            yield inputs, levels, truth

    def _seen(self, inputs: Tensor, rng: np.random.Generator) -> Tensor:
        """1 where a window sees an input, 0, as if it had never been read, where not; (B, 1, F)."""
        seen = np.ones((len(inputs), 1, inputs.shape[-1]), np.float32)
        for window in np.flatnonzero(rng.random(len(inputs)) < self._blind):
            order = rng.permutation(len(self._groups))
            for group in order[: rng.integers(len(order)) + 1]:
                seen[window, 0, self._groups[group]] = 0.0
        return torch.from_numpy(seen).to(inputs.device)

    def _gathered(self, chosen: NDArray[np.int64], later: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        rows: list[list[Tensor]] = [[], [], []]
        for which, shift in zip(chosen, later, strict=True):
            index, start, channel = self._starts[which]
            series = self._series[index]
            start = max(min(start + int(shift), len(series[0]) - self._length), 0)
            start -= start % self._stride  # covariates that come once a tick are as fresh as in the loop
            for out, values, filling in zip(rows, series, (0.0, 0.0, float("nan")), strict=True):
                part = values[start : start + self._length, channel]
                if len(part) < self._length:
                    rest = part.new_full((self._length - len(part), part.shape[1]), filling)
                    part = torch.cat([part, rest])
                out.append(part)
            if start > 0:
                hidden = rows[2][-1].clone()
                hidden[:WARM_UP_S] = float("nan")
                rows[2][-1] = hidden
        inputs, levels, truth = (torch.stack(parts) for parts in rows)
        return inputs, levels, truth

    @torch.no_grad()
    def loss(self, network: nn.Module) -> float:
        """Mean pinball loss over whole series, in deviations of training."""
        total, count = 0.0, 0
        network.eval()
        by_length = sorted(self._series, key=lambda series: len(series[0]))
        for _, alike in groupby(by_length, key=lambda series: len(series[0])):
            group = list(alike)
            for first in range(0, len(group), TOGETHER):
                some = group[first : first + TOGETHER]
                inputs, levels, truth = (torch.cat(parts, dim=1).transpose(0, 1) for parts in zip(*some, strict=True))
                known = int((~torch.isnan(truth[..., 0])).sum())
                total += float(pinball(network(inputs, levels), truth)) * known
                count += known
        return total / count


def pinball(quantiles: Tensor, truth: Tensor) -> Tensor:
    """Mean pinball loss of (..., 4, 3) where the truth (..., 4) is known."""
    known = ~torch.isnan(truth[..., 0])
    off = truth[known][..., None] - quantiles[known]
    level = torch.tensor(QUANTILES, device=off.device, dtype=off.dtype)
    return torch.maximum(level * off, (level - 1) * off).mean()


class _Run:
    """A network on its way, with its best weights so far."""

    def __init__(self, network: nn.Module, model: Learned, windows: _Windows, seed: int) -> None:
        self.network, self.settings, self.windows, self.seed = network, model.settings, windows, seed
        self.path = model.checkpoint
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        self.epoch, self.stale, self.best_loss = 0, 0, float("inf")
        self.best = _copied(network)

    def pass_once(self) -> None:
        """Goes through all windows once; the same pass has the same order, also after a stop."""
        rng = np.random.default_rng((self.seed, self.epoch))
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * 0.5 * (1 + np.cos(np.pi * self.epoch / self.settings.epochs))
        for inputs, levels, truth in self.windows.batches(rng):
            # Forecasts of neighbouring seconds say much the same: one in each stride is enough, another one each time.
            judged = slice(int(rng.integers(self.settings.stride_s)), None, self.settings.stride_s)
            if torch.isnan(truth[:, judged]).all():
                continue
            self.optimizer.zero_grad()
            pinball(self.network(inputs, levels, judged), truth[:, judged]).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.network.parameters(), LONGEST_GRADIENT)
            self.optimizer.step()
        self.epoch += 1

    def validate(self, loss: float) -> None:
        """Keeps the weights if they are the best."""
        if loss < self.best_loss:
            self.best_loss, self.stale, self.best = loss, 0, _copied(self.network)
        else:
            self.stale += 1

    def save(self) -> None:
        """Writes all that is needed to go on."""
        if self.path is None:
            return
        tensors = {f"now.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
        figures = {
            "epoch": self.epoch,
            "stale": self.stale,
            "best_loss": self.best_loss,
            "signature": self._signature(),
        }
        with whole(self.path) as partial:
            save_file({k: v.contiguous() for k, v in tensors.items()}, partial, {"run": json.dumps(figures)})

    def resume(self) -> None:
        """Goes on where a run of the same network, settings and seed was stopped."""
        if self.path is None or not self.path.exists():
            return
        with safe_open(self.path, "pt") as file:
            figures = json.loads((file.metadata() or {}).get("run", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        if figures.get("signature") != self._signature():
            raise InputError(str(self.path), "is of another network, data, seed or settings", "Give another folder")
        parts: dict[str, dict[str, Any]] = {"now": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = value
        self.network.load_state_dict(parts["now"])
        self.best = parts["best"]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            number, _, rest = name.partition(".")
            state.setdefault(int(number), {})[rest] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.epoch, self.stale, self.best_loss = (figures[name] for name in ("epoch", "stale", "best_loss"))

    def _signature(self) -> str:
        """What must be the same for a run to go on."""
        shapes = {name: list(value.shape) for name, value in self.network.state_dict().items()}
        settings = {name: value for name, value in vars(self.settings).items() if name != "device"}
        return json.dumps([shapes, settings, self.seed, self.windows.digest()], sort_keys=True)


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
