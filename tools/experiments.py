"""Runs the standard grid of experiments: every kind of model on both data sets, with several seeds each."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import product

from stages.lib.stage import StageError, run

DATASETS = ("mnist", "fashion_mnist")
# What each kind is trained with where it is not what params.yaml says, and how many seeds it gets; chosen on the
# validation split, see README.
SETTINGS: dict[str, dict[str, object]] = {
    "linear": {},
    "pca_knn": {},
    "mlp": {},
    "cnn": {"train.schedule": "one_cycle", "train.learning_rate": 0.01, "train.epochs": 12},
}
SEEDS = {"linear": 5, "pca_knn": 5, "mlp": 5, "cnn": 3}  # the costly kind with fewer
GLANCE = 2  # seconds between two looks at the queue
RESTARTS = 3  # of a worker that ended before its work


def grid() -> dict[str, dict[str, object]]:
    """The changes to params.yaml of each experiment, by its name."""
    return {
        f"{dataset}-{kind}-{seed}": {"dataset": dataset, "model.kind": kind, "train.seed": seed, **SETTINGS[kind]}
        for kind, dataset in product(SETTINGS, DATASETS)
        for seed in range(SEEDS[kind])
    }


def dvc(*arguments: str) -> str:
    """Runs a DVC command; what it prints.

    Raises:
        StageError: It failed.
    """
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())[-300:]
        raise StageError(f"dvc {' '.join(arguments[:2])}: expected exit code 0, found {done.returncode}: {words}")
    return done.stdout


def finished() -> set[str]:
    """Names of the experiments that stand on HEAD."""
    return set(dvc("exp", "list", "--name-only").split())


def tasks() -> dict[str, str]:
    """The last state of each experiment in DVC's queue: Queued, Running, Success or Failed."""
    rows = (line.split() for line in dvc("queue", "status").splitlines()[1:])
    return {row[1]: row[-1] for row in rows if row and row[-1] in ("Queued", "Running", "Success", "Failed")}


def changes(values: Mapping[str, object]) -> list[str]:
    """Values of params.yaml as DVC's command line takes them."""
    return [word for key, value in values.items() for word in ("-S", f"{key}={value}")]


def run_serially(todo: Mapping[str, Mapping[str, object]]) -> list[str]:
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


def run_in_queue(todo: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Queues experiments, starts DVC's worker and waits for it; the names of those that failed."""
    waiting = {name for name, state in tasks().items() if state in ("Queued", "Running")}
    for name in todo:
        if name not in waiting:
            dvc("exp", "run", "--queue", "--name", name, *changes(todo[name]))
            print(f"queued  {name}", flush=True)
    left, failed, starts = set(todo), [], 0
    while left:
        status = dvc("queue", "status")
        if "Worker status: 0 active, 0 idle" in status:
            if starts > RESTARTS:
                raise StageError(f"queue: expected a worker that stays, found none after {starts} starts; --serial")
            dvc("queue", "start")
            starts += 1
        states = tasks()
        for name in sorted(left):
            if states.get(name) == "Success" or (name not in states and name in finished()):
                print(f"{len(todo) - len(left) + 1}/{len(todo)}  {name}  accuracy {accuracy(name):.4f}", flush=True)
            elif states.get(name) == "Failed":
                failed.append(name)
                print(f"{len(todo) - len(left) + 1}/{len(todo)}  {name}  failed; dvc queue logs {name}", flush=True)
            else:
                continue
            left.remove(name)
        time.sleep(GLANCE)
    return failed


def accuracy(name: str) -> float:
    """Of a finished experiment on its test split."""
    shown = json.loads(dvc("metrics", "diff", "--all", "--json", name, name))
    return float(shown["reports/metrics.json"]["accuracy"]["new"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.experiments", description=__doc__)
    parser.add_argument("--serial", action="store_true", help="one after another in this process, without DVC's queue")
    parser.add_argument("--only", metavar="TEXT", default="", help="experiments with this text in their name")
    args = parser.parse_args()
    chosen = {name: values for name, values in grid().items() if args.only in name}
    if not chosen:
        raise StageError(f"--only: expected a part of a name such as {next(iter(grid()))}, found {args.only!r}")
    done = finished()
    todo = {name: values for name, values in chosen.items() if name not in done}
    print(f"{len(chosen) - len(todo)} of {len(chosen)} experiments are there, {len(todo)} to run", flush=True)
    failed = (run_serially if args.serial else run_in_queue)(todo)
    if failed:
        raise StageError(f"experiments: expected all to end well, found that {len(failed)} failed: {', '.join(failed)}")
    print("make compare: which is better")


if __name__ == "__main__":
    run(main)
