"""Part 5: time and peak memory of each stage as the images grow in number."""

import sys

from benchmarks.report import Check, Part
from benchmarks.runner import Contender, in_turn, middle, ratio
from benchmarks.settings import Settings
from benchmarks.workspace import copy_project, write_synthetic

STAGES = ("normalize", "train", "predict", "evaluate", "plot", "extract_errors")
FACTORS = (1, 4, 16)
FLAT = 1.25  # peak memory at 16x over that at 1x that still counts as not growing


def measure(settings: Settings) -> Part:
    """Runs the part: one epoch, synthetic images, 1, 4 and 16 times as many as MNIST has."""
    train, test, validation = (n // (60 if settings.quick else 1) for n in (60_000, 10_000, 5_000))
    contenders = []
    for factor in FACTORS:
        params = {"normalize.validation": validation * factor, "train.epochs": 1}
        folder = copy_project(settings.scratch / f"growth-{factor}", params)
        write_synthetic(
            folder / "data/raw", train * factor, test * factor, [str(digit) for digit in range(10)]
        )
        for stage in STAGES:
            command = [sys.executable, "-m", f"stages.{stage}"]
            contenders.append(Contender(f"{stage} {factor}x", command, folder))
    runs = in_turn(contenders, settings.fit_rounds)
    peaks = {name: middle(runs, name, "peak") / 1e9 for name in runs}
    split = (train - validation) * FACTORS[-1] * 28 * 28 * 4 / 1e9
    rows, checks = [], []
    for stage in STAGES:
        names = [f"{stage} {factor}x" for factor in FACTORS]
        times = ratio(runs, names[-1], names[0])
        cells = (
            [f"{middle(runs, name):.1f}" for name in names]
            + [f"{times:.1f}"]
            + [f"{peaks[n]:.2f}" for n in names]
        )
        rows.append([stage, *cells])
        checks.append(Check(f"{stage}: time at 16x over 1x", times, 18, at_least=False))
        if stage in ("train", "predict"):
            checks.append(
                Check(
                    f"{stage}: peak at 16x",
                    peaks[names[-1]],
                    round(split + 1.5, 2),
                    at_least=False,
                    unit=" GB",
                )
            )
        else:
            growth = peaks[names[-1]] / peaks[names[0]]
            checks.append(Check(f"{stage}: peak at 16x over 1x", growth, FLAT, at_least=False))
    return Part(
        f"Growth: {train:,} and {test:,} images, 4 and 16 times as many; one epoch; train at 16x has {split:.2f} GB",
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
