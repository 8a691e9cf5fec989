"""The service on loopback, against Keras `predict` behind FastAPI."""

import sys
from statistics import median

from benchmarks.report import Check, Part
from benchmarks.runner import Command, Runs, in_turn, mean_interval
from benchmarks.settings import Settings
from benchmarks.workspace import call, copy_project

OURS, KERAS = "ours: tools.serve", "Keras predict, FastAPI"
LOADS = ("1", "16")  # clients


def middle(runs: Runs, name: str, clients: str, key: str) -> float:
    """Return the median of a measurement over the rounds."""
    return float(median(result[clients][key] for result in runs[name]))


def measure(settings: Settings) -> Part:
    """Run the part: single test images of MNIST, sent by threads with one connection each."""
    folder = copy_project(settings.scratch / "serve", {"dataset": "mnist", "train.epochs": 1})
    call("dvc", "repro", "train", cwd=folder)
    load = [sys.executable, "-m", "benchmarks.baselines.serve_load", "1" if settings.quick else "5"]
    runs = in_turn(
        [
            Command(OURS, [*load, "tools.serve", "--port", "0"], folder),
            Command(KERAS, [*load, "benchmarks.baselines.keras_serve"], folder),
        ],
        settings.long_rounds,
        warm_up=False,
    )
    answers = {tuple(result["classes"]) for results in runs.values() for result in results}
    if len(answers) > 1:
        raise RuntimeError("the services predict different classes")
    memory = {name: median(result["memory"] / 1e6 for result in runs[name]) for name in runs}
    pairs = [*zip(runs[OURS], runs[KERAS], strict=True)]
    faster = {
        clients: [own[clients]["rate"] / other[clients]["rate"] for own, other in pairs]
        for clients in LOADS
    }
    return Part(
        "Serve: requests with one image each on loopback; milliseconds",
        [
            "",
            *(f"{key}, {clients}" for clients in LOADS for key in ("per s", "p50", "p99")),
            "MB",
        ],
        [
            [
                name,
                *(
                    f"{middle(runs, name, clients, key):.{digits}f}"
                    for clients in LOADS
                    for key, digits in (("rate", 0), ("p50", 1), ("p99", 1))
                ),
                f"{memory[name]:.0f}",
            ]
            for name in runs
        ],
        [
            Check(f"requests per second, clients: {clients}", mean_interval(faster[clients]), 5)
            for clients in LOADS
        ],
        [(name, middle(runs, name, "16", "p50")) for name in runs],
        "milliseconds, median with 16 clients",
        runs,
    )
