"""Part 3: the whole pipeline from fetched images to reports, against the tutorial's script end to end."""

import sys
from pathlib import Path

from benchmarks.report import Check, Part
from benchmarks.runner import Contender, in_turn, middle, ratio
from benchmarks.settings import Settings
from benchmarks.workspace import DATA, call, copy_project

OURS, TUTORIAL = "ours: dvc repro", "tutorial, end to end"


class Fetched:
    """A project in which only fetch has run, to come back to: nothing else in its cache, its lock or its outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = (folder / "dvc.lock").read_bytes()
        self.files = set(folder.rglob("*"))

    def restore(self, _: int) -> None:
        """Removes all that came since, and takes dvc.lock back."""
        for path in sorted(
            set(self.folder.rglob("*")) - self.files, reverse=True
        ):  # what is in a folder, before it
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
        (self.folder / "dvc.lock").write_bytes(self.lock)


def measure(settings: Settings) -> Part:
    """Runs the part."""
    params = {"dataset": "mnist", "normalize.validation": 0, "train.epochs": settings.epochs}
    folder = copy_project(settings.scratch / "pipeline", params)
    figures = settings.scratch / "pipeline-figures"
    figures.mkdir()
    call("dvc", "repro", "fetch", cwd=folder)
    script: list[str | Path] = [
        sys.executable,
        "-m",
        "benchmarks.baselines.tutorial",
        DATA / "mnist.npz",
        "--figures",
        figures,
    ]
    runs = in_turn(
        [
            Contender(OURS, ["dvc", "repro"], folder, Fetched(folder).restore),
            Contender(TUTORIAL, [*script, "--epochs", str(settings.epochs)], folder),
        ],
        settings.fit_rounds,
    )
    return Part(
        "Whole pipeline: six stages after fetch, nothing cached, nine pictures; a script, six; 60,000 images",
        ["", "s", "of ours"],
        [[name, f"{middle(runs, name):.1f}", f"{ratio(runs, name, OURS):.2f}"] for name in runs],
        [Check("whole pipeline against the tutorial end to end", ratio(runs, TUTORIAL, OURS), 1.0)],
        [(name, middle(runs, name)) for name in runs],
        "seconds",
        runs,
    )
