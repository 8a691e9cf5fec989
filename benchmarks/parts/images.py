"""Reading folders of image files, compared with Keras and a plain loop of Pillow."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report import Check, Part
from benchmarks.runner import Command, in_turn, middle, ratio
from benchmarks.settings import Settings
from benchmarks.workspace import ROOT

READERS = ("ours", "pillow", "keras")
FACTOR = 16
FLAT = 1.25  # ratio of peak memory at 16x and 1x that counts as constant


def write_images(folder: Path, count: int, suffix: str) -> Path:
    """Write images of ten classes: gray PNG of 28 x 28, or color JPEG of 256 x 256."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / str(number % 10) / f"{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".png":
            pixels = np.zeros((28, 28), np.uint8)
            pixels[6:22, 6:22] = rng.integers(0, 256, (16, 16))
            Image.fromarray(pixels).save(path)
        else:
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC).save(path)
    return folder


def measure(settings: Settings) -> Part:
    """Run the part."""
    least = 100 if settings.quick else 1
    sets = {
        "PNG": write_images(settings.scratch / "images-png", 10_000 // least, ".png"),
        "JPEG": write_images(settings.scratch / "images-jpeg", 2_000 // least, ".jpg"),
    }
    module = [sys.executable, "-m", "benchmarks.baselines.images"]
    commands = [
        Command(f"{reader}, {kind}", [*module, reader, folder], ROOT)
        for kind, folder in sets.items()
        for reader in READERS
    ]
    runs = in_turn(commands, settings.rounds)
    # Use distinct images, because duplicates would take less memory in the report.
    many = write_images(settings.scratch / "images-16", FACTOR * 10_000 // least, ".png")
    small, large = "ours: import, PNG", f"ours: import, PNG {FACTOR}x"
    imports = [
        Command(name, [*module, "import", folder], ROOT)
        for name, folder in ((small, sets["PNG"]), (large, many))
    ]
    runs |= in_turn(imports, min(settings.rounds, 3), warm_up=False)
    rows = [
        [name, f"{middle(runs, name, 'seconds'):.2f}", f"{middle(runs, name, 'peak') / 1e9:.2f}"]
        for name in runs
    ]
    checks = []
    for kind in sets:
        for reader in READERS[1:]:
            times = ratio(runs, f"{reader}, {kind}", f"ours, {kind}", "seconds")
            checks.append(Check(f"{kind}: {reader} over ours", times, 1))
    growth = middle(runs, large, "peak") / middle(runs, small, "peak")
    checks.append(Check(f"peak at {FACTOR}x over 1x", growth, FLAT, at_least=False))
    return Part(
        "Image files: 10,000 PNG of 28 x 28, 2,000 JPEG of 256 x 256; seconds without imports",
        ["", "s", "peak, GB"],
        rows,
        checks,
        [(name, middle(runs, name, "seconds")) for name in runs],
        "seconds",
        runs,
    )
