"""The whole pipeline from fetched images to reports, against the transcription."""

import sys
from pathlib import Path

from benchmarks.report import Check, Part
from benchmarks.runner import Command, in_turn, middle, ratio
from benchmarks.settings import Settings
from benchmarks.workspace import DATA, call, copy_project

OURS, TRANSCRIPTION = "ours: dvc repro", "transcription, end to end"


class Fetched:
    """A project in which only fetch has run: its cache, lock file and outputs contain no more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = (folder / "dvc.lock").read_bytes()
        self.files = set(folder.rglob("*"))

    def restore(self, _: int) -> None:
        """Remove newer files and restore dvc.lock."""
        # In reverse order, files come before their folder.
        for path in sorted(set(self.folder.rglob("*")) - self.files, reverse=True):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
        (self.folder / "dvc.lock").write_bytes(self.lock)


def measure(settings: Settings) -> Part:
    """Run the part."""
    params = {"dataset": "mnist", "normalize.validation": 0, "train.epochs": settings.epochs}
    folder = copy_project(settings.scratch / "pipeline", params)
    figures = settings.scratch / "pipeline-figures"
    figures.mkdir()
    call("dvc", "repro", "fetch", cwd=folder)
    script: list[str | Path] = [
        sys.executable,
        "-m",
        "benchmarks.baselines.transcription",
        DATA / "mnist.npz",
        "--figures",
        figures,
    ]
    runs = in_turn(
        [
            Command(OURS, ["dvc", "repro"], folder, Fetched(folder).restore),
            Command(TRANSCRIPTION, [*script, "--epochs", str(settings.epochs)], folder),
        ],
        settings.long_rounds,
    )
    counts = [len([*path.glob("*.png")]) for path in (folder / "reports/figures", figures)]
    return Part(
        f"Whole pipeline: all stages after fetch, nothing cached, {counts[0]} figures; "
        f"the transcription, {counts[1]} figures; 60,000 images",
        ["", "s", "of ours"],
        [
            [name, f"{middle(runs, name):.1f}", f"{ratio(runs, name, OURS).value:.2f}"]
            for name in runs
        ],
        [
            Check(
                "whole pipeline against the transcription",
                ratio(runs, TRANSCRIPTION, OURS),
                1.6,
            )
        ],
        [(name, middle(runs, name)) for name in runs],
        "seconds",
        {**runs, "figures": counts},
    )
