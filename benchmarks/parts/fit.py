"""The tutorial's fit in five implementations, and the hardware's limit."""

import sys
from pathlib import Path
from statistics import harmonic_mean, mean, median

from benchmarks import flop
from benchmarks.report import Check, Part
from benchmarks.runner import Command, Interval, Runs, in_turn, mean_interval, middle, ratio
from benchmarks.settings import Settings
from benchmarks.workspace import DATA, call, copy_project

LAYERS = (784, 1000, 10)
OURS, TRANSCRIPTION, EAGER, COMPILED, JAX = (
    "ours",
    "transcription",
    "PyTorch eager",
    "PyTorch compiled",
    "JAX scan",
)


def commands(settings: Settings, folder: Path) -> list[Command]:
    """Return the five fits, and the libraries' matrix products to measure in the same rounds."""
    ours, peers = sys.executable, settings.peers
    seed = ["--seed", "{round}"]
    epochs = [*seed, "--epochs", str(settings.epochs)]

    def module(python: str | Path, name: str, *more: str | Path) -> list[str | Path]:
        return [python, "-m", f"benchmarks.baselines.{name}", *more]

    fits = [
        Command(OURS, module(ours, "ours", *seed), folder),
        Command(TRANSCRIPTION, module(ours, "transcription", DATA / "mnist.npz", *epochs), folder),
        Command(EAGER, module(peers, "torch_fit", *epochs), folder),
        Command(COMPILED, module(peers, "torch_fit", "--compile", *epochs), folder),
        Command(JAX, module(peers, "jax_fit", *epochs), folder),
    ]
    rates = [
        Command(f"rate {name}", module(ours, "rate", name), folder)
        for name in ("numpy", "tensorflow", "xla")
    ]
    return [*fits, *rates, Command("rate torch", module(peers, "rate", "torch"), folder)]


def steady(runs: Runs, name: str) -> float:
    """Return the median over rounds of the mean duration in seconds of epochs after the first."""
    return float(median(mean(result["epochs"][1:]) for result in runs[name]))


def share_of_rate(runs: Runs, work: float) -> Interval:
    """Compute the rate of our epochs after the first, in % of the fastest matrix product's rate.

    Args:
        runs: Runs of all commands.
        work: GFLOP per epoch.
    """
    libraries = [name for name in runs if name.startswith("rate")]
    shares = [
        100 * work / mean(result["epochs"][1:]) / max(runs[name][i]["rate"] for name in libraries)
        for i, result in enumerate(runs[OURS])
    ]
    return mean_interval(shares)


def best(runs: Runs, *shapes: str) -> float:
    """Return the harmonic mean of GFLOP/s over shapes, each with the fastest library."""
    libraries = [name for name in runs if name.startswith("rate")]
    rates = [
        max(median(result["rates"][shape] for result in runs[name]) for name in libraries)
        for shape in shapes
    ]
    return float(harmonic_mean(rates))


def measure(settings: Settings) -> Part:
    """Run the part."""
    folder = copy_project(
        settings.scratch / "fit",
        {"dataset": "mnist", "normalize.validation": 0, "train.epochs": settings.epochs},
    )
    call("python", "-m", "stages.fetch", cwd=folder)
    call("python", "-m", "stages.normalize", cwd=folder)
    runs = in_turn(commands(settings, folder), settings.rounds)
    names = [OURS, TRANSCRIPTION, EAGER, COMPILED, JAX]
    rate = max(middle(runs, name, "rate") for name in runs if name.startswith("rate"))
    own = best(runs, "100 x 784 x 1000", "784 x 100 x 1000")
    work = flop.epoch(LAYERS, 60_000, 10_000) / 1e9
    extra = mean_interval(
        [result["epochs"][0] - median(result["epochs"][1:]) for result in runs[OURS]]
    )
    rows = [
        [
            name,
            f"{middle(runs, name, 'seconds'):.1f}",
            f"{ratio(runs, name, OURS, 'seconds').value:.2f}",
            f"{median(result['epochs'][0] for result in runs[name]):.2f}",
            f"{steady(runs, name):.2f}",
            f"{work / steady(runs, name) / rate:.0%}",
            f"{work / steady(runs, name) / own:.0%}",
            f"{mean(result['accuracy'] for result in runs[name]):.4f}",
        ]
        for name in names
    ]
    return Part(
        f"Fit: 784-1000-10, {settings.epochs} epochs of 600 batches of 100, MNIST; "
        f"{work:.1f} GFLOP an epoch, matrix products at {rate:.0f} GFLOP/s, "
        f"at the shapes of this fit {own:.0f}",
        [
            "",
            "fit, s",
            "of ours",
            "first epoch, s",
            "later epochs, s",
            "of the rate",
            "of that at its shapes",
            "accuracy",
        ],
        rows,
        [
            Check(
                "fit against the transcription", ratio(runs, TRANSCRIPTION, OURS, "seconds"), 2.6
            ),
            Check("fit against PyTorch eager", ratio(runs, EAGER, OURS, "seconds"), 1.5),
            Check("fit against JAX scan", ratio(runs, JAX, OURS, "seconds"), 1.05),
            Check("first epoch minus a later one", extra, 0.7, at_least=False, unit=" s"),
            Check("share of the matrix-product rate", share_of_rate(runs, work), 75, unit=" %"),
        ],
        [(name, middle(runs, name, "seconds")) for name in names],
        "seconds to fit, including compilation",
        runs,
    )
