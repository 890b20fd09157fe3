"""Writes an llmcluster agent's routing weights to labels of pods, where the router of llm-d reads them.

    python llm_d_labels.py --sidecar http://127.0.0.1:8090 --prometheus http://prometheus:9090 --apply

The slots of the scenario bear the names of the pods. Without --apply it prints the commands. When it ends, or cannot
decide for three ticks, all pods have the same weight again.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import threading

from llmcluster_client import VLLM_AND_DCGM, Sidecar, readings

LABEL = "llmcluster-weight"
LEVELS = ("0", "0.25", "0.5", "0.75", "1")
"""Labels are text, and the router knows these: llm-d-epp.yaml lists all but 0, at which a pod gets nothing."""
PATIENCE = 3


def labels(slots: list[str], weights: list[float] | None) -> dict[str, str]:
    """The label of each pod; where no weight is left, all have the same."""
    steps = [round(weight * (len(LEVELS) - 1)) for weight in weights or [1.0] * len(slots)]
    if not any(steps):
        steps = [len(LEVELS) - 1] * len(slots)
    return {slot: LEVELS[step] for slot, step in zip(slots, steps, strict=True)}


class Labeller:
    """Writes labels that have changed.

    Args:
        namespace: Where the pods are.
        apply: Whether to write, or only to print.
    """

    def __init__(self, namespace: str, apply: bool) -> None:
        self._namespace, self._apply = namespace, apply
        self._written: dict[str, str] = {}

    def write(self, wanted: dict[str, str]) -> None:
        """Sets the labels."""
        for pod, weight in wanted.items():
            if self._written.get(pod) == weight:
                continue
            command = [
                "kubectl",
                "--namespace",
                self._namespace,
                "label",
                "pod",
                pod,
                "--overwrite",
                f"{LABEL}={weight}",
            ]
            print(shlex.join(command), flush=True)
            if not self._apply or subprocess.run(command, check=False, timeout=30).returncode == 0:
                self._written[pod] = weight


def main() -> None:
    """Decides tick by tick until it is told to end."""
    parser = argparse.ArgumentParser(description="Routing weights of an llmcluster agent as labels of pods.")
    parser.add_argument("--sidecar", required=True)
    parser.add_argument("--prometheus", required=True)
    parser.add_argument("--token-file")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--apply", action="store_true")
    options = parser.parse_args()
    sidecar = Sidecar(options.sidecar, options.token_file)
    spaces = sidecar.spaces()
    slots, failures, labeller = spaces["slots"], 0, Labeller(options.namespace, options.apply)
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    try:
        while not end.is_set():
            try:
                told = readings(options.prometheus, VLLM_AND_DCGM, slots, 4.0)
                told.setdefault("model", [0] * len(slots))
                labeller.write(labels(slots, sidecar.decide(told)["route_weight"]))
                failures = 0
            except (OSError, ValueError, KeyError) as fault:
                failures += 1
                print(f"no decision: {fault}", flush=True)
                if failures == PATIENCE:
                    labeller.write(labels(slots, None))
            end.wait(spaces["tick_s"])
    finally:
        labeller.write(labels(slots, None))


if __name__ == "__main__":
    main()
