"""Part 5: time and peak memory of each stage by the number of images."""

import sys

from benchmarks.report import Check, Part
from benchmarks.runner import Command, in_turn, mean_interval, middle, ratio
from benchmarks.settings import Settings
from benchmarks.workspace import copy_project, write_synthetic

STAGES = ("normalize", "train", "predict", "evaluate", "plot", "extract_errors")
FACTORS = (1, 4, 16)
FLAT = 1.25  # ratio of peak memory at 16x and 1x that counts as constant


def measure(settings: Settings) -> Part:
    """Run the part: one epoch on synthetic images, 1, 4 and 16 times as many as in MNIST."""
    train, test, validation = (n // (60 if settings.quick else 1) for n in (60_000, 10_000, 5_000))
    commands = []
    for factor in FACTORS:
        params = {"normalize.validation": validation * factor, "train.epochs": 1}
        folder = copy_project(settings.scratch / f"scaling-{factor}", params)
        write_synthetic(
            folder / "data/raw", train * factor, test * factor, [str(digit) for digit in range(10)]
        )
        for stage in STAGES:
            command = [sys.executable, "-m", f"stages.{stage}"]
            commands.append(Command(f"{stage} {factor}x", command, folder))
    runs = in_turn(commands, settings.long_rounds)
    peaks = {name: middle(runs, name, "peak") / 1e9 for name in runs}
    split = (train - validation) * FACTORS[-1] * 28 * 28 * 4 / 1e9
    rows, checks = [], []
    for stage in STAGES:
        names = [f"{stage} {factor}x" for factor in FACTORS]
        times = ratio(runs, names[-1], names[0])
        seconds = (f"{middle(runs, name):.1f}" for name in names)
        memory = (f"{peaks[name]:.2f}" for name in names)
        rows.append([stage, *seconds, f"{times.value:.1f}", *memory])
        checks.append(Check(f"{stage}: time at 16x over 1x", times, 18, at_least=False))
        if stage in ("train", "predict"):
            checks.append(
                Check(
                    f"{stage}: peak at 16x",
                    mean_interval([result["peak"] / 1e9 for result in runs[names[-1]]]),
                    round(split + 1.5, 2),
                    at_least=False,
                    unit=" GB",
                )
            )
        else:
            peak = ratio(runs, names[-1], names[0], "peak")
            checks.append(Check(f"{stage}: peak at 16x over 1x", peak, FLAT, at_least=False))
    return Part(
        f"Scaling: {train:,} and {test:,} images, 4 and 16 times as many; one epoch; "
        f"the training split at 16x has {split:.2f} GB",
        [
            "",
            *(f"{factor}x, s" for factor in FACTORS),
            "16x/1x",
            *(f"{factor}x, GB" for factor in FACTORS),
        ],
        rows,
        checks,
        [
            (f"{stage}, {factor}x", peaks[f"{stage} {factor}x"])
            for stage in STAGES
            for factor in (1, 16)
        ],
        "peak memory, GB",
        runs,
    )
