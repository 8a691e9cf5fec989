"""Experiments on Dask workers, against the same experiments one by one."""

import shutil
from pathlib import Path

from benchmarks.report import Check, Part
from benchmarks.runner import Command, in_turn, mean_interval, middle
from benchmarks.settings import Settings
from benchmarks.workspace import call, copy_project

SERIAL, ONE, TWO = "ours: one by one", "ours: one worker", "ours: two workers"
MLP, MANY = "ours: one run of the MLP", "ours: two workers, tiny data"


class Grid:
    """A project with folders as Git and DVC remotes, restored before each command."""

    def __init__(self, folder: Path, short: int, tiny: int, data: str) -> None:
        self.folder, self.template = folder, folder.with_name(f"{folder.name}-template")
        self.project = folder / "project"
        copy_project(self.project, {"dataset": data, "train.epochs": 1})
        tool = self.project / "tools/experiments.py"
        text = tool.read_text(encoding="utf-8")
        for old, new in (
            ('"linear": 10,', f'"linear": {short},'),
            ('"pca_knn": 1,', f'"pca_knn": {tiny},'),
        ):
            if old not in text:
                raise RuntimeError(f"{tool} has no {old}")
            text = text.replace(old, new)
        tool.write_text(text, encoding="utf-8")
        for command in (
            ["git", "init", "--quiet", "--bare", "--initial-branch", "main", f"{folder}/origin"],
            ["git", "config", "user.name", "benchmark"],
            ["git", "config", "user.email", "benchmark@example.org"],
            ["git", "remote", "add", "origin", f"{folder}/origin"],
            ["dvc", "remote", "add", "--quiet", "--default", "store", f"{folder}/store"],
            ["dvc", "repro", "normalize"],
            ["git", "add", "--all"],
            ["git", "commit", "--quiet", "--message", "Benchmark"],
            ["git", "push", "--quiet", "origin", "HEAD:main"],
        ):
            call(*command, cwd=self.project)
        (folder / "store/files/md5").mkdir(parents=True)
        shutil.copytree(folder, self.template)

    def restore(self, _: int) -> None:
        """Remove all experiments, clones and pushed data."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.template, self.folder)


def measure(settings: Settings) -> Part:
    """Run the part: experiments on workers and serially."""
    short, tiny = (2, 2) if settings.quick else (8, 64)
    data = "digits" if settings.quick else "mnist"
    grid = Grid(settings.scratch / "workers", short, tiny, data)
    command = ["python", "-m", "tools.experiments", "--datasets"]
    linear = [*command, data, "--only", "linear"]
    mlp = ["dvc", "exp", "run", "--temp", "--name", "mlp", "-S", f"train.epochs={settings.epochs}"]
    many = [*command, "digits", "--only", "pca_knn", "--workers", "2"]
    runs = in_turn(
        [
            Command(SERIAL, linear, grid.project, grid.restore),
            Command(ONE, [*linear, "--workers", "1"], grid.project, grid.restore),
            Command(TWO, [*linear, "--workers", "2"], grid.project, grid.restore),
            Command(MLP, mlp, grid.project, grid.restore),
            Command(MANY, many, grid.project, grid.restore),
        ],
        min(settings.rounds, 3),  # a round takes about nine minutes
        warm_up=False,
    )
    counts = {SERIAL: short, ONE: short, TWO: short, MLP: 1, MANY: tiny}
    walls = {name: [result["wall"] for result in runs[name]] for name in runs}
    on_worker = mean_interval(
        [
            1 + (one - serial) / short / alone
            for serial, one, alone in zip(walls[SERIAL], walls[ONE], walls[MLP], strict=True)
        ]
    )
    rows = [
        [f"{name}, {count}", f"{middle(runs, name):.1f}", f"{middle(runs, name) / count:.2f}"]
        for name, count in counts.items()
    ]
    return Part(
        f"Experiments on workers: {short} short ones, {tiny} on tiny data",
        ["", "s", "s each"],
        rows,
        [Check("a run of the MLP on a worker", on_worker, 1.1, at_least=False)],
        [(name, middle(runs, name) / count) for name, count in counts.items()],
        "seconds per experiment",
        {**runs, "counts": counts},
    )
