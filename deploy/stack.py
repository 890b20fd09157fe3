"""Puts a deployment together from its configuration: sources, plant, mind, loop, exporter."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

from ..envs.cluster_env import LLMClusterEnv
from ..simulator.deployments import AVERAGING_FROM_S
from ..simulator.errors import InputError
from .audit import Audit, AuditError
from .beats import Beats
from .capping import Capper, Log
from .config import DeployConfig
from .deployable import checked_config
from .exporter import Exporter, LoopCollector
from .gateway.client import HttpGatewayClient
from .gateway.tokens import tokens_in
from .guards import Bounds
from .keeper.client import KeeperClient
from .lifecycle import Life
from .loop import ControlLoop, Progress
from .mind import Mind
from .plant import RealPlant
from .readings import GatewayClient, GpuSource, LimitWriter, ReadingError
from .sampler import Sampler
from .servers import engine_of, server_of
from .slots import SlotMeters
from .surroundings import Surroundings

HUNG_AFTER_S = 10.0
"""Without a sign of the loop for so long beyond a tick, there are no more beats."""
BEATS_A_LEASE = 4
FIRST_KNOWN = {"budget": "[limits]", "site": "[site]"}
"""Troubles with which no loop begins, and where their files are named: later on, the last value holds."""
SOONER = 0.8
"""A GPU that hangs is given up by this share of the time limit, so that the readings of the others come within it."""


@dataclass(frozen=True, eq=False)
class Stack:
    """All of a control loop.

    Attributes:
        loop: The loop.
        plant: The cluster.
        mind: Who decides.
        exporter: Its metrics.
    """

    loop: ControlLoop
    plant: RealPlant
    mind: Mind
    exporter: Exporter


@contextmanager
def opened_gpus(config: DeployConfig) -> Iterator[GpuSource]:
    """The GPUs, to be read only."""
    names = [gpu for slot in config.slots for gpu in slot.gpus]
    if config.telemetry.source == "dcgm":
        from .engines.dcgm import DcgmSource

        yield DcgmSource(config.telemetry.dcgm_url, names, config.telemetry.timeout_s)
        return
    from .nvml.session import NvmlSession

    session = NvmlSession(names, SOONER * config.telemetry.timeout_s)
    try:
        yield session
    finally:
        session.close()


def gateway_client(config: DeployConfig) -> HttpGatewayClient:
    """The gateway's administration."""
    path = config.gateway.admin_tokens
    if path is None:
        remedy = "Name a file with a token: `openssl rand -hex 32 > admin.token`"
        raise InputError("gateway.admin_tokens", "is not given, so nobody can steer the gateway", remedy)
    try:
        token = tokens_in(path)[0]
    except (OSError, UnicodeDecodeError, IndexError) as fault:
        raise InputError(str(path), f"holds no token ({fault})", "Write one: `openssl rand -hex 32`") from fault
    return HttpGatewayClient(config.gateway_url, token, config.telemetry.timeout_s)


def sampler_of(
    config: DeployConfig,
    gpus: GpuSource,
    gateway: GatewayClient | None,
    clock: Callable[[], float] = time.monotonic,
) -> Sampler:
    """All sources of a configuration."""
    names = tuple(gpu for slot in config.slots for gpu in slot.gpus)
    engines = {slot.name: engine_of(slot, config, clock) for slot in config.slots}
    return Sampler(gpus, names, engines, gateway, config.telemetry.timeout_s, clock)


def bounds_of(config: DeployConfig, env: LLMClusterEnv) -> Bounds:
    """What the site and the data sheets allow of the caps of slots."""
    limits, fleet = config.limits, env.fleet
    gpus = np.array([len(slot.gpus) for slot in config.slots], np.float64)
    highest_w = fleet.cap_max_w if limits.ceiling_w is None else np.minimum(fleet.cap_max_w, limits.ceiling_w * gpus)
    floor_w = np.maximum(fleet.cap_min_w, limits.floor_w * gpus)
    if (floor_w > highest_w).any():
        problem = f"floor_w {limits.floor_w:g} is above the highest limit of {float((highest_w / gpus).min()):g} W"
        raise InputError("limits", problem, "Lower it")
    return Bounds(
        floor_w=floor_w,
        ceiling_w=highest_w,
        max_rise_w=limits.max_rise_w * gpus,
        max_fall_w=limits.max_fall_w * gpus,
        hysteresis_w=limits.hysteresis_w * gpus,
        min_interval_s=limits.min_interval_s,
    )


def plant_of(
    config: DeployConfig,
    env: LLMClusterEnv,
    gpus: GpuSource,
    gateway: GatewayClient,
    writer: LimitWriter | None,
    log: Log,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[RealPlant, Capper]:
    """The plant of a configuration; without a writer nothing is ever changed."""
    blueprint, telemetry = env.blueprint, config.telemetry
    of_slots = [slot.gpus for slot in config.slots]
    windows_s = [blueprint.deployments[d].power.meter_window_s for d in blueprint.initial]
    averages = [telemetry.power == "energy" or window_s >= AVERAGING_FROM_S for window_s in windows_s]
    meters = SlotMeters(of_slots, averages, env.fleet.cap_max_w, telemetry.stale_s)
    lives = []
    for r, slot in enumerate(config.slots):

        def seconds(model: str, woken: bool, r: int = r) -> float:
            deployment = blueprint.deployments[int(blueprint.index[r, blueprint.models.index(model)])]
            return deployment.wake_s if woken else deployment.load_s

        is_off = blueprint.slots[r].spec.initial == "empty"
        server, patience_s = server_of(slot, config, blueprint.spec.engine.sleep_level), config.launcher.ready_s
        life = Life(
            server, slot.model, env.fleet.models, is_off=is_off, seconds=seconds, timeout_s=patience_s, clock=clock
        )
        lives.append(life)
    surroundings = Surroundings(env.scenario, blueprint, config.limits, config.site, telemetry.stale_s, clock)
    capper = Capper(of_slots, bounds_of(config, env), writer, log, clock)
    plant = RealPlant(
        env.fleet,
        env.scenario.tick_s,
        sampler_of(config, gpus, gateway, clock),
        meters,
        tuple(lives),
        surroundings,
        capper,
        None if writer is None else gateway,
        telemetry.stale_s,
        log,
        clock,
    )
    if config.limits.default_w is not None:
        plant.default_w = np.array([config.limits.default_w * len(own) for own in of_slots])
    return plant, capper


@contextmanager
def opened_stack(
    path: Path, agent: str, *, apply: bool, told: Callable[[Progress], None] = lambda progress: None
) -> Iterator[Stack]:
    """A control loop with everything around it, from its configuration.

    Args:
        path: The configuration.
        agent: Name of the agent, or its folder.
        apply: Whether anything is changed.
        told: Is told of each decision.

    Raises:
        InputError: The configuration or the agent does not hold.
        ReadingError: GPUs, the keeper or the file of the budget are not there.
        AuditError: Not even the first line of the log can be written.
    """
    config = checked_config(path)
    with ExitStack() as stack:
        env = LLMClusterEnv(config.scenario, forecaster="none")
        mind = Mind(config.scenario, agent, config.forecaster, patience_s=env.scenario.tick_s / 2)
        gateway = gateway_client(config)
        gpus = stack.enter_context(opened_gpus(config))
        dry, _ = plant_of(config, mind.env, gpus, gateway, None, lambda kind, **facts: None)
        mind.warm_up(dry, dry.read())  # before there is a lease, which would run out meanwhile
        for trouble in dry.troubles:
            if trouble.kind in FIRST_KNOWN:
                raise ReadingError(
                    f"{FIRST_KNOWN[trouble.kind]} {trouble.what}: {trouble.text}; none is known to begin with"
                )
        writer = stack.enter_context(KeeperClient(config.keeper.socket)) if apply else None
        spec = config.audit
        audit = stack.enter_context(Audit(spec.path, fsync=spec.fsync, max_bytes=spec.max_bytes, keep=spec.keep))
        plant, capper = plant_of(config, mind.env, gpus, gateway, writer, audit.write)
        tick_s = mind.env.scenario.tick_s
        beats = Beats(writer, config.keeper.lease_s / BEATS_A_LEASE, tick_s + HUNG_AFTER_S)
        loop = ControlLoop(plant, mind, audit, beats, tick_s, apply=apply, told=told)
        collector = LoopCollector(plant, capper, loop.progress, apply=apply)
        exporter = Exporter(collector, config.exporter.host, config.exporter.port)
        stack.callback(exporter.close)
        facts = {"agent": agent, "scenario": config.scenario, "apply": apply, "exporter_port": exporter.port}
        audit.write("start", **facts, default_w=plant.default_w, slots=plant.fleet.slots)
        why = ""
        try:
            yield Stack(loop, plant, mind, exporter)
        except BaseException as fault:
            why = f"{type(fault).__name__}: {fault}"
            raise
        finally:
            with suppress(AuditError):  # everything is restored by now; a full disk is no reason to fail at the end
                audit.write("end", decisions=loop.progress.ticks, fault=why)


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Within, SIGTERM and SIGINT call ``stop``; in a thread other than the main one, nothing does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        stop()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
