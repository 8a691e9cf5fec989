"""Part 2: how long it takes to be as accurate as the tutorial says it is."""

import sys
from pathlib import Path
from statistics import mean

from benchmarks.report import Check, Part
from benchmarks.runner import Contender, in_turn, middle, ratio
from benchmarks.settings import Settings
from benchmarks.workspace import DATA, call, copy_project

TO_REACH = {"mnist": 0.9804, "fashion_mnist": 0.8821}
# One cycle in few epochs of larger batches; chosen among seven settings by accuracy on the
# validation split.
FAST = {
    "train.schedule": "one_cycle",
    "train.learning_rate": 0.006,
    "train.batch_size": 500,
    "train.epochs": 5,
}


def measure(settings: Settings) -> Part:
    """Runs the part: each round has the next seed, so that means over rounds are means over seeds."""
    module: list[str | Path] = [sys.executable, "-m"]
    contenders = []
    for dataset in TO_REACH:
        params = {"dataset": dataset, "normalize.validation": 0, **FAST}
        folder = copy_project(settings.scratch / f"fast-{dataset}", params)
        call("python", "-m", "stages.fetch", cwd=folder)
        call("python", "-m", "stages.normalize", cwd=folder)
        script: list[str | Path] = [
            "benchmarks.baselines.tutorial",
            DATA / f"{dataset}.npz",
            "--epochs",
            str(settings.epochs),
        ]
        ours = [*module, "benchmarks.baselines.ours", "--seed", "{round}"]
        contenders.append(Contender(f"ours, {dataset}", ours, folder))
        contenders.append(
            Contender(f"tutorial, {dataset}", [*module, *script, "--seed", "{round}"], folder)
        )
    runs = in_turn(contenders, max(settings.fit_rounds, 1 if settings.quick else 3))
    accuracies = {
        name: mean(result["accuracy"] for result in results) for name, results in runs.items()
    }
    rows = [
        [
            name,
            f"{middle(runs, name, 'seconds'):.1f}",
            f"{accuracies[name]:.4f}",
            str(TO_REACH[name.split(", ")[1]]),
        ]
        for name in runs
    ]
    checks = []
    for dataset, target in TO_REACH.items():
        times = ratio(runs, f"tutorial, {dataset}", f"ours, {dataset}", "seconds")
        checks.append(Check(f"{dataset}: time to its accuracy against the tutorial", times, 5.0))
        checks.append(
            Check(
                f"{dataset}: mean accuracy of ours", accuracies[f"ours, {dataset}"], target, unit=""
            )
        )
    return Part(
        "Time to the tutorial's accuracy: "
        + ", ".join(f"{key} {value}" for key, value in FAST.items()),
        ["", "fit, s", "accuracy", "to reach"],
        rows,
        checks,
        [(name, middle(runs, name, "seconds")) for name in runs],
        "seconds to fit, compiling included",
        runs,
    )
