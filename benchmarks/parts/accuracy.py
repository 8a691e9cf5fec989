"""The time until a fit is as accurate on the test split as the tutorial reports."""

import sys
from itertools import accumulate
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.report import Check, Part
from benchmarks.runner import Command, Interval, Runs, in_turn, mean_interval
from benchmarks.settings import Settings
from benchmarks.workspace import DATA, call, copy_project

TARGETS = {"mnist": 0.9804, "fashion_mnist": 0.8821}
# Chosen on Fashion-MNIST's validation split (searches/fast.yaml); the same for PyTorch and JAX.
EPOCHS, BATCH_SIZE, LEARNING_RATE = 3, 250, 0.004
OURS, TRANSCRIPTION, EAGER, JAX = "ours", "transcription", "PyTorch eager", "JAX scan"


def commands(settings: Settings, dataset: str) -> list[Command]:
    """Return the commands: the same recipe in three libraries, and the tutorial's transcription."""
    params = {
        "dataset": dataset,
        "normalize.method": "standardize",
        "normalize.validation": 0,
        "train.schedule": "one_cycle",
        "train.learning_rate": LEARNING_RATE,
        "train.batch_size": BATCH_SIZE,
        "train.epochs": EPOCHS,
    }
    folder = copy_project(settings.scratch / f"fast-{dataset}", params)
    call("python", "-m", "stages.fetch", cwd=folder)
    call("python", "-m", "stages.normalize", cwd=folder)
    seed = ["--seed", "{round}"]
    recipe = ["--one-cycle", "--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE)]
    recipe += ["--learning-rate", str(LEARNING_RATE)]
    script = [str(DATA / f"{dataset}.npz"), "--epochs", str(settings.epochs)]
    modules: dict[str, tuple[str | Path, str, list[str]]] = {
        OURS: (sys.executable, "ours", []),
        TRANSCRIPTION: (sys.executable, "transcription", script),
        EAGER: (settings.peers, "torch_fit", recipe),
        JAX: (settings.peers, "jax_fit", recipe),
    }
    return [
        Command(
            f"{name}, {dataset}",
            [python, "-m", f"benchmarks.baselines.{module}", *more, *seed],
            folder,
        )
        for name, (python, module, more) in modules.items()
    ]


def seconds_to(target: float, result: dict[str, Any]) -> float | None:
    """Return the training time in seconds until an epoch reaches this test accuracy, if any."""
    ends = accumulate(result["epochs"])
    reached = (
        end for end, accuracy in zip(ends, result["accuracies"], strict=True) if accuracy >= target
    )
    return next(reached, None)


def time_ratio(runs: Runs, other: str, ours: str, target: float) -> Interval:
    """Compute the ratio of another command's time to a target accuracy to ours, paired by round.

    If the other command misses the target, its whole fit counts, and the ratio is a lower bound. If
    ours misses it, the interval is unbounded.
    """
    pairs = []
    for result, own in zip(runs[other], runs[ours], strict=True):
        seconds = seconds_to(target, own)
        if seconds is None:
            return Interval(0.0, 0.0, float("inf"))
        pairs.append((seconds_to(target, result) or result["seconds"]) / seconds)
    return mean_interval(pairs)


def measure(settings: Settings) -> Part:
    """Run the part; each round has a different seed."""
    timed = [command for dataset in TARGETS for command in commands(settings, dataset)]
    runs = in_turn(timed, settings.rounds)
    rows, bars, checks = [], [], []
    for name, results in runs.items():
        target = TARGETS[name.split(", ")[1]]
        reached = [seconds for r in results if (seconds := seconds_to(target, r)) is not None]
        rows.append(
            [
                name,
                str(target),
                f"{len(reached)} of {len(results)}",
                f"{median(reached):.1f}" if reached else "-",
                f"{median(result['seconds'] for result in results):.1f}",
                f"{mean(result['accuracy'] for result in results):.4f}",
            ]
        )
        if reached:
            bars.append((name, float(median(reached))))
    for dataset, target in TARGETS.items():
        for other, limit in ((TRANSCRIPTION, 8.0), (EAGER, 1.0), (JAX, 1.0)):
            times = time_ratio(runs, f"{other}, {dataset}", f"{OURS}, {dataset}", target)
            checks.append(Check(f"{dataset}: time to {target} against {other}", times, limit))
    return Part(
        "Time to the tutorial's accuracy: "
        f"one cycle, learning rate {LEARNING_RATE}, batches of {BATCH_SIZE}, {EPOCHS} epochs",
        ["", "target", "reached in", "first after, s", "whole fit, s", "accuracy at the end"],
        rows,
        checks,
        bars,
        "seconds until the target is first reached, including compilation",
        runs,
    )
