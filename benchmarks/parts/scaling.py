"""Time and peak memory of stages and tools by number of images and of classes."""

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report import Check, Part
from benchmarks.runner import Command, Runs, in_turn, mean_of, middle, ratio
from benchmarks.settings import Settings
from benchmarks.workspace import ARRAYS, call, copy_project, write_synthetic

STAGES = ("normalize", "train", "predict", "evaluate", "plot", "extract_errors")
TOOLS = ("dataset", "fetch", "label_errors", "classify", "report", "verify")
FACTORS = (1, 4, 16)
CLASSES = (10, 62, 256)
FILES = 100  # that classify reads at 1x
FLAT = 1.25  # ratio of peak memory at 16x and 1x that counts as constant


def sizes(settings: Settings) -> tuple[int, int, int]:
    """Return the numbers of training, test and validation images at 1x."""
    share = 60 if settings.quick else 1
    return 60_000 // share, 10_000 // share, 5_000 // share


def write_files(folder: Path, files: Path, count: int) -> Path:
    """Write test images as PNG files, from the first on, repeated if there are too few."""
    files.mkdir()
    images = np.load(folder / "data/raw/test_images.npy", mmap_mode="r")
    for i in range(count):
        Image.fromarray(images[i % len(images)]).save(files / f"{i:05}.png")
    return files


def commands(settings: Settings, factor: int, classes: int) -> list[Command]:
    """Prepare a project with synthetic images, and return its stages and then its tools."""
    train, test, validation = (count * factor for count in sizes(settings))
    label = f"{factor}x, {classes}"
    params = {"dataset": "synthetic", "normalize.validation": validation, "train.epochs": 1}
    folder = copy_project(settings.scratch / f"scaling {label}", params)
    raw, own = folder / "data/raw", folder / "data/own"
    write_synthetic(raw, train, test, [f"class {number}" for number in range(classes)])
    npz = folder.with_name(f"{folder.name}.npz")
    np.savez(npz, **{short: np.load(raw / f"{name}.npy") for short, name in ARRAYS.items()})
    call("python", "-m", "tools.dataset", "synthetic", str(npz), cwd=folder)
    call("python", "-m", "stages.fetch", cwd=folder)
    files = write_files(folder, folder.with_name(f"{folder.name} files"), FILES * factor)

    def forget_import(_: int) -> None:
        shutil.rmtree(own, ignore_errors=True)
        (folder / "datasets/synthetic.yaml").unlink(missing_ok=True)

    def write_lock(_: int) -> None:
        call("dvc", "commit", "--quiet", "--force", cwd=folder)

    options: dict[str, list[str | Path]] = {
        "dataset": ["synthetic", npz],
        "label_errors": ["--folds", "2"],
        "classify": [files],
    }
    packages = {"fetch": "stages"}  # it reads the file that the tool dataset wrote
    before = {"dataset": forget_import, "report": write_lock, "verify": write_lock}
    stages = [
        Command(f"{stage} {label}", [sys.executable, "-m", f"stages.{stage}"], folder)
        for stage in STAGES
    ]
    tools = [
        Command(
            f"{tool} {label}",
            [sys.executable, "-m", f"{packages.get(tool, 'tools')}.{tool}", *options.get(tool, [])],
            folder,
            before.get(tool),
        )
        for tool in TOOLS
    ]
    return [*stages, *tools]


def rows(runs: Runs, labels: list[str]) -> list[list[str]]:
    """Tabulate time in seconds, its ratio and peak memory in GB, a row per stage and tool."""
    found = []
    for name in (*STAGES, *TOOLS):
        names = [f"{name} {label}" for label in labels]
        seconds = (f"{middle(runs, full):.1f}" for full in names)
        memory = (f"{middle(runs, full, 'peak') / 1e9:.2f}" for full in names)
        found.append([name, *seconds, f"{ratio(runs, names[-1], names[0]).value:.1f}", *memory])
    return found


def measure_images(settings: Settings) -> Part:
    """Measure one epoch on 1, 4 and 16 times as many images as in MNIST."""
    train, test, validation = sizes(settings)
    turns = [command for factor in FACTORS for command in commands(settings, factor, 10)]
    runs = in_turn(turns, min(settings.rounds, 3), warm_up=False)
    split = (train - validation) * FACTORS[-1] * 28 * 28 * 4 / 1e9
    labels = [f"{factor}x, 10" for factor in FACTORS]
    checks = []
    for name in (*STAGES, *TOOLS):
        least, most = f"{name} {labels[0]}", f"{name} {labels[-1]}"
        times = ratio(runs, most, least)
        checks.append(Check(f"{name}: time at 16x over 1x", times, 18, at_least=False))
        if name in ("train", "predict", "label_errors"):
            peaks = mean_of(runs, most, "peak", 1e9)
            limit = round(split + 1.5, 2)
            checks.append(Check(f"{name}: peak at 16x", peaks, limit, at_least=False, unit=" GB"))
        else:
            peak = ratio(runs, most, least, "peak")
            checks.append(Check(f"{name}: peak at 16x over 1x", peak, FLAT, at_least=False))
    return Part(
        f"Scaling by images: {train:,} and {test:,} images, 4 and 16 times as many; one epoch; "
        f"the training split at 16x has {split:.2f} GB",
        [
            "",
            *(f"{factor}x, s" for factor in FACTORS),
            "16x/1x",
            *(f"{factor}x, GB" for factor in FACTORS),
        ],
        rows(runs, labels),
        checks,
        [
            (f"{stage}, {factor}x", middle(runs, f"{stage} {factor}x, 10", "peak") / 1e9)
            for stage in STAGES
            for factor in (1, 16)
        ],
        "peak memory, GB",
        runs,
    )


def measure_classes(settings: Settings) -> Part:
    """Measure one epoch on as many images as in MNIST, of 10, 62 and 256 classes."""
    train, test, _ = sizes(settings)
    turns = [command for classes in CLASSES for command in commands(settings, 1, classes)]
    runs = in_turn(turns, min(settings.rounds, 3), warm_up=False)
    labels = [f"1x, {classes}" for classes in CLASSES]
    most = f"plot {labels[-1]}"
    return Part(
        f"Scaling by classes: {train:,} and {test:,} images of 10, 62 and 256 classes; one epoch",
        [
            "",
            *(f"{classes}, s" for classes in CLASSES),
            "256/10",
            *(f"{classes}, GB" for classes in CLASSES),
        ],
        rows(runs, labels),
        [
            Check(
                "plot: time at 256 classes over 10",
                ratio(runs, most, f"plot {labels[0]}"),
                1.5,
                at_least=False,
            ),
            Check(
                "plot: peak at 256 classes",
                mean_of(runs, most, "peak", 1e9),
                0.3,
                at_least=False,
                unit=" GB",
            ),
        ],
        [
            (f"{name}, {classes}", middle(runs, f"{name} 1x, {classes}"))
            for name in (*STAGES, *TOOLS)
            for classes in (10, 256)
        ],
        "seconds",
        runs,
    )
