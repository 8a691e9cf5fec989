"""Training the CNN, compared with the same layers in PyTorch."""

import sys
from pathlib import Path
from statistics import mean, median

from benchmarks.report import Check, Part
from benchmarks.runner import Command, in_turn, middle, ratio
from benchmarks.settings import Settings
from benchmarks.workspace import call, copy_project

OURS, EAGER, COMPILED, CHANNELS_LAST = (
    "ours",
    "PyTorch eager",
    "PyTorch compiled",
    "PyTorch channels_last",
)
VARIANTS: dict[str, list[str | Path]] = {
    EAGER: [],
    COMPILED: ["--compile"],
    CHANNELS_LAST: ["--channels-last"],
}
EPOCHS, BATCH_SIZE, LEARNING_RATE = 3, 100, 0.005


def measure(settings: Settings) -> Part:
    """Run the part: few epochs on Fashion-MNIST, with translation and flips."""
    epochs = 1 if settings.quick else EPOCHS
    params = {
        "dataset": "fashion_mnist",
        "normalize.validation": 0,
        "model.kind": "cnn",
        "train.schedule": "one_cycle",
        "train.learning_rate": LEARNING_RATE,
        "train.batch_size": BATCH_SIZE,
        "train.epochs": epochs,
    }
    folder = copy_project(settings.scratch / "cnn", params)
    call("python", "-m", "stages.fetch", cwd=folder)
    call("python", "-m", "stages.normalize", cwd=folder)
    seed = ["--seed", "{round}"]
    recipe = ["--cnn", "--flip", "--one-cycle", "--learning-rate", str(LEARNING_RATE)]
    recipe += ["--batch-size", str(BATCH_SIZE), "--epochs", str(epochs), *seed]
    ours: list[str | Path] = [sys.executable, "-m", "benchmarks.baselines.ours", *seed]
    torch: list[str | Path] = [settings.peers, "-m", "benchmarks.baselines.torch_fit", *recipe]
    commands = [
        Command(OURS, ours, folder),
        *(Command(name, [*torch, *options], folder) for name, options in VARIANTS.items()),
    ]
    runs = in_turn(commands, min(settings.rounds, 3), warm_up=False)
    for results in runs.values():
        for result in results:  # the last epochs, which compile nothing
            result["epoch"] = median(result["epochs"][-2:])
    rows = [
        [
            name,
            f"{middle(runs, name, 'seconds'):.1f}",
            f"{middle(runs, name, 'epoch'):.1f}",
            f"{ratio(runs, name, OURS, 'epoch').value:.2f}",
            f"{mean(result['accuracy'] for result in results):.4f}",
        ]
        for name, results in runs.items()
    ]
    return Part(
        f"CNN: {epochs} epochs of batches of {BATCH_SIZE}, Fashion-MNIST, validation included",
        ["", "fit, s", "epoch, s", "of ours", "accuracy"],
        rows,
        [
            Check(f"CNN: an epoch against {name}", ratio(runs, name, OURS, "epoch"), 1.3)
            for name in VARIANTS
        ],
        [(name, middle(runs, name, "epoch")) for name in runs],
        "seconds of an epoch after the first",
        runs,
    )
