"""Runs the standard grid of experiments: every kind of model on both data sets, with several seeds each."""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import product

from stages.lib.stage import StageError, run

DATASETS = ("mnist", "fashion_mnist")
# What each kind is trained with where it is not what params.yaml says, and how many seeds it gets.
SETTINGS: dict[str, dict[str, object]] = {
    "linear": {},
    "pca_knn": {},
    "mlp": {},
    "cnn": {"train.schedule": "one_cycle", "train.learning_rate": 0.01, "train.epochs": 12},
}
SEEDS = {"linear": 5, "pca_knn": 5, "mlp": 5, "cnn": 3}  # the costly kind with fewer
GLANCE = 2  # seconds between two looks at the queue
WARM_UP = 5  # seconds until a worker tells of itself
MISSES = 5  # looks in a row that find no worker, before another one is started: a busy one does not always answer
STARTS = 3  # of workers that end before their work, without an experiment that ended well between

Grid = Mapping[str, Mapping[str, object]]


def grid() -> dict[str, dict[str, object]]:
    """The changes to params.yaml of each experiment, by its name."""
    return {
        f"{dataset}-{kind}-{seed}": {"dataset": dataset, "model.kind": kind, "train.seed": seed, **SETTINGS[kind]}
        for kind, dataset in product(SETTINGS, DATASETS)
        for seed in range(SEEDS[kind])
    }


def call(*command: str) -> str:
    """Runs a command; what it prints.

    An interrupt is handed on and waited for: DVC, killed while it queues or runs an experiment, would leave the
    workspace with the experiment's parameters.

    Raises:
        StageError: It failed.
    """
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True) as process:
        try:
            said, complaints = process.communicate()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.communicate()
            raise
    if process.returncode:
        words = " ".join((complaints or said).split())[-300:]
        raise StageError(f"{' '.join(command[-3:])}: expected exit code 0, found {process.returncode}: {words}")
    return said


def dvc(*arguments: str) -> str:
    """Runs a DVC command; what it prints."""
    return call(sys.executable, "-m", "dvc", *arguments)


def finished() -> set[str]:
    """Names of the experiments that stand on HEAD."""
    return set(dvc("exp", "list", "--name-only").split())


def tasks() -> dict[str, tuple[str, str]]:
    """Name and last state (Queued, Running, Failed or Success) of each task in DVC's queue, by its number."""
    rows = (line.split() for line in dvc("queue", "status").splitlines()[1:])
    return {row[0]: (row[1], row[-1]) for row in rows if row and row[-1] in ("Queued", "Running", "Failed", "Success")}


def changes(values: Mapping[str, object]) -> list[str]:
    """Values of params.yaml as DVC's command line takes them."""
    return [word for key, value in values.items() for word in ("-S", f"{key}={value}")]


def accuracy(name: str) -> float:
    """Of a finished experiment on its test split."""
    shown = json.loads(dvc("metrics", "diff", "--all", "--json", name, name))
    return float(shown["reports/metrics.json"]["accuracy"]["new"])


def run_serially(todo: Grid) -> list[str]:
    """Runs experiments one after another, each in a temporary folder; the names of those that failed."""
    failed = []
    for number, (name, values) in enumerate(todo.items(), 1):
        start = time.perf_counter()
        try:
            dvc("exp", "run", "--temp", "--name", name, *changes(values))
            said = f"accuracy {accuracy(name):.4f}"
        except StageError as error:
            failed.append(name)
            said = f"failed: {error}"
        print(f"{number}/{len(todo)}  {name}  {said}  {time.perf_counter() - start:.0f} s", flush=True)
    return failed


def run_in_queue(todo: Grid) -> list[str]:
    """Queues experiments, starts DVC's worker and waits for it; the names of those that failed."""
    earlier = {task for task, (_, state) in tasks().items() if state in ("Failed", "Success")}
    waiting = {name for name, state in tasks().values() if state in ("Queued", "Running")}
    for name in [name for name in todo if name not in waiting]:
        dvc("exp", "run", "--queue", "--name", name, *changes(todo[name]))
        print(f"queued  {name}", flush=True)
    left, failed, starts, misses = set(todo), [], 0, MISSES
    while left:
        misses = misses + 1 if "Worker status: 0 active, 0 idle" in dvc("queue", "status") else 0
        if misses >= MISSES:
            if starts >= STARTS:
                raise StageError(
                    "queue: expected a worker that stays, found none; EXPERIMENTS=--serial, dvc queue kill"
                )
            dvc("queue", "start")
            starts, misses = starts + 1, 0
            time.sleep(WARM_UP)
        ended = finished()
        lost = {name for task, (name, state) in tasks().items() if state == "Failed" and task not in earlier}
        for name in sorted(left & (ended | lost)):
            left.remove(name)
            starts = 0
            if name not in ended:
                failed.append(name)
            said = f"accuracy {accuracy(name):.4f}" if name in ended else f"failed; dvc queue logs {name}"
            print(f"{len(todo) - len(left)}/{len(todo)}  {name}  {said}", flush=True)
        time.sleep(GLANCE)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.experiments", description=__doc__)
    parser.add_argument("--serial", action="store_true", help="one after another in this process, without DVC's queue")
    parser.add_argument("--only", metavar="TEXT", default="", help="experiments with this text in their name")
    args = parser.parse_args()
    chosen = {name: values for name, values in grid().items() if args.only in name}
    if not chosen:
        raise StageError(f"--only: expected a part of a name such as {next(iter(grid()))}, found {args.only!r}")
    # What is finished is known by its name and the commit alone.
    changed = call("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!reports", ":!dvc.lock")
    if changed:
        raise StageError(
            f"git: expected no change since the last commit, found {changed.split()[1]}; commit, or restore"
        )
    done = finished()
    todo = {name: values for name, values in chosen.items() if name not in done}
    print(f"{len(chosen) - len(todo)} of {len(chosen)} experiments are there, {len(todo)} to run", flush=True)
    try:
        failed = (run_serially if args.serial else run_in_queue)(todo)
    except KeyboardInterrupt:
        if not args.serial:
            print("the queue's worker goes on; dvc queue stop --kill ends it", flush=True)
        raise
    if failed:
        raise StageError(f"experiments: expected all to end well, found that {len(failed)} failed: {', '.join(failed)}")
    print("make compare: which is better")


if __name__ == "__main__":
    run(main)
