"""Part 1: the tutorial's exact fit, in five ways, and the share of the matrix-product rate that ours reaches."""

import sys
from pathlib import Path
from statistics import harmonic_mean, mean, median

from benchmarks import flop
from benchmarks.report import Check, Part
from benchmarks.runner import Contender, Runs, in_turn, middle, ratio
from benchmarks.settings import Settings
from benchmarks.workspace import DATA, call, copy_project

LAYERS = (784, 1000, 10)
OURS, TUTORIAL, EAGER, COMPILED, JAX = (
    "ours",
    "tutorial",
    "PyTorch eager",
    "PyTorch compiled",
    "JAX scan",
)


def contenders(settings: Settings, folder: Path) -> list[Contender]:
    """The five ways to fit, and the libraries whose rate is measured in the same rounds."""
    module = ["-m", "benchmarks.baselines"]
    ours, peers = sys.executable, settings.peers
    end = ["--seed", "{round}"]
    epochs = [*end, "--epochs", str(settings.epochs)]
    fresh = {
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"
    }  # what compiling costs, costs it in each process

    def command(python: str | Path, name: str, *more: str | Path) -> list[str | Path]:
        return [python, module[0], f"{module[1]}.{name}", *more]

    fits = [
        Contender(OURS, command(ours, "ours", *end), folder),
        Contender(TUTORIAL, command(ours, "tutorial", DATA / "mnist.npz", *epochs), folder),
        Contender(EAGER, command(peers, "torch_fit", *epochs), folder),
        Contender(
            COMPILED, command(peers, "torch_fit", "--compile", *epochs), folder, variables=fresh
        ),
        Contender(JAX, command(peers, "jax_fit", *epochs), folder),
    ]
    rates = [
        Contender(f"rate {name}", command(ours, "rate", name), folder)
        for name in ("numpy", "tensorflow", "xla")
    ]
    return [*fits, *rates, Contender("rate torch", command(peers, "rate", "torch"), folder)]


def steady(runs: Runs, name: str) -> float:
    """Median seconds of an epoch after the first, over all rounds."""
    return float(median(seconds for result in runs[name] for seconds in result["epochs"][1:]))


def best(runs: Runs, *shapes: str) -> float:
    """GFLOP/s over matrix products of these shapes, equal shares of the work, each where it is fastest."""
    libraries = [name for name in runs if name.startswith("rate")]
    rates = [
        max(median(result["rates"][shape] for result in runs[name]) for name in libraries)
        for shape in shapes
    ]
    return float(harmonic_mean(rates))


def measure(settings: Settings) -> Part:
    """Runs the part."""
    folder = copy_project(
        settings.scratch / "fit",
        {"dataset": "mnist", "normalize.validation": 0, "train.epochs": settings.epochs},
    )
    call("python", "-m", "stages.fetch", cwd=folder)
    call("python", "-m", "stages.normalize", cwd=folder)
    runs = in_turn(contenders(settings, folder), settings.fit_rounds)
    names = [OURS, TUTORIAL, EAGER, COMPILED, JAX]
    rate = max(middle(runs, name, "rate") for name in runs if name.startswith("rate"))
    own = best(runs, "100 x 784 x 1000", "784 x 100 x 1000")
    work = flop.epoch(LAYERS, 60_000, 10_000) / 1e9
    rows = [
        [
            name,
            f"{middle(runs, name, 'seconds'):.1f}",
            f"{ratio(runs, name, OURS, 'seconds'):.2f}",
            f"{median(result['epochs'][0] for result in runs[name]):.2f}",
            f"{steady(runs, name):.2f}",
            f"{work / steady(runs, name) / rate:.0%}",
            f"{work / steady(runs, name) / own:.0%}",
            f"{mean(result['accuracy'] for result in runs[name]):.4f}",
        ]
        for name in names
    ]
    return Part(
        f"Fit: 784-1000-10, {settings.epochs} epochs of 600 batches of 100, MNIST; {work:.1f} GFLOP an epoch, "
        f"matrix products at {rate:.0f} GFLOP/s, at the shapes of this fit {own:.0f}",
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
            Check("fit against the tutorial", ratio(runs, TUTORIAL, OURS, "seconds"), 2.5),
            Check("fit against PyTorch eager", ratio(runs, EAGER, OURS, "seconds"), 1.5),
            Check("fit against JAX scan", ratio(runs, JAX, OURS, "seconds"), 1.0),
            Check(
                "share of the matrix-product rate",
                100 * work / steady(runs, OURS) / rate,
                75,
                unit=" %",
            ),
        ],
        [(name, middle(runs, name, "seconds")) for name in names],
        "seconds to fit, compiling included",
        runs,
    )
