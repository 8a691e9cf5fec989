"""The time of `dvc repro` if little or nothing has changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.report import Check, Part
from benchmarks.runner import Command, in_turn, mean_of, middle, ratio
from benchmarks.settings import Settings
from benchmarks.workspace import ROOT, call, copy_project, edit

OURS, EMPTY = "ours: nothing to do", "seven empty stages: nothing to do"
BACK, PLOT = "ours: back to a dataset run before", "ours: one plot.* number changed"
# Python imports this module at startup if it is on PYTHONPATH. It records each process that imports
# TensorFlow; stages/run.sh only looks for it.
SPY = """
import os, sys
def note(event, arguments):
    if event == "import" and arguments[0] == "tensorflow":
        with open(os.environ["TENSORFLOW_IMPORTS"], "a") as file:
            print(os.getpid(), file=file)
sys.addaudithook(note)
"""


def empty_stages(folder: Path) -> Path:
    """Create a repository with the stages and outputs of dvc.yaml; each stage runs `touch`."""
    pipeline = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    stages: dict[str, Any] = {}
    for name, stage in pipeline["stages"].items():
        outs = [out if isinstance(out, str) else next(iter(out)) for out in stage["outs"]]
        folders = " ".join(sorted({str(Path(out).parent) for out in outs}))
        read = {"data/raw" if path.startswith("data/raw/") else path for path in stage["deps"]}
        stages[name] = {
            "cmd": f"mkdir -p {folders} && touch {' '.join(outs)}",
            "deps": sorted(path for path in read if path.startswith("data/")) or ["start"],
            "outs": stage["outs"],
        }
    folder.mkdir()
    call("git", "init", "--quiet", cwd=folder)
    call("dvc", "init", "--quiet", cwd=folder)
    call("dvc", "config", "core.analytics", "false", cwd=folder)
    (folder / "start").touch()
    with (folder / "dvc.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump({"stages": stages}, file)
    call("dvc", "repro", cwd=folder)
    return folder


def setting(folder: Path, key: str, values: Callable[[int], object]) -> Callable[[int], None]:
    """Return a function that sets a parameter before each round."""
    return lambda number: edit(folder / "params.yaml", {key: values(number)})


def measure(settings: Settings) -> Part:
    """Run the part."""
    scratch = settings.scratch
    project = copy_project(scratch / "overhead", {"dataset": "mnist", "train.epochs": 1})
    switched = copy_project(scratch / "switched", {"dataset": "fashion_mnist", "train.epochs": 1})
    call("dvc", "repro", cwd=project)
    call("dvc", "repro", cwd=switched)
    edit(switched / "params.yaml", {"dataset": "mnist"})
    call("dvc", "repro", cwd=switched)
    spy = scratch / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(SPY, encoding="utf-8")
    imports = spy / "imports"
    watched = {"PYTHONPATH": str(spy), "TENSORFLOW_IMPORTS": str(imports)}
    seeds = setting(project, "plot.seed", lambda number: number + 1)
    datasets = setting(switched, "dataset", lambda number: ("fashion_mnist", "mnist")[number % 2])
    repro = ["dvc", "repro"]
    idle = in_turn(
        [Command(OURS, repro, project), Command(EMPTY, repro, empty_stages(scratch / "empty"))],
        settings.rounds,
    )
    # No warm-up, because it would apply the change of the first round.
    busy = in_turn(
        [
            Command(BACK, repro, switched, datasets, watched),
            Command(PLOT, repro, project, seeds),
        ],
        settings.rounds,
        warm_up=False,
    )
    runs = idle | busy
    imported = len(imports.read_text().splitlines()) if imports.exists() else 0
    rows = [
        [name, f"{middle(runs, name):.2f}", f"{ratio(runs, name, EMPTY).value:.2f}"]
        for name in runs
    ]
    return Part(
        "Overhead of dvc repro",
        ["", "s", "of the empty stages"],
        rows,
        [
            Check(
                "nothing to do, against seven empty stages",
                ratio(runs, OURS, EMPTY),
                1.2,
                at_least=False,
            ),
            *(
                Check(name, mean_of(runs, name), limit, at_least=False, unit=" s")
                for name, limit in ((BACK, 8), (PLOT, 1.5))
            ),
            Check(
                "processes that import TensorFlow on the way back",
                imported,
                0,
                at_least=False,
                unit="",
            ),
        ],
        [(name, middle(runs, name)) for name in runs],
        "seconds",
        {**runs, "tensorflow_imports": imported},
    )
