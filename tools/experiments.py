"""Runs the standard grid of experiments: every kind of model on both datasets, with several seeds each."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, product
from tempfile import TemporaryFile

from dvc.repo import Repo

from stages.lib.stage import StageError, run
from tools.lib.runs import read_run

DATASETS = ("mnist", "fashion_mnist")
# Each setting of the grid: where it differs from params.yaml, and how many seeds it gets.
SETTINGS: dict[str, dict[str, object]] = {
    "linear": {"model.kind": "linear"},
    "pca_knn": {"model.kind": "pca_knn"},
    "mlp": {"model.kind": "mlp"},
    "mlp_dropout": {
        "model.kind": "mlp",
        "model.mlp.dropout": 0.3,
        "train.schedule": "one_cycle",
        "train.learning_rate": 0.003,
        "train.batch_size": 250,
        "train.epochs": 20,
    },
    "cnn": {
        "model.kind": "cnn",
        "train.schedule": "one_cycle",
        "train.learning_rate": 0.005,
        "train.epochs": 16,
    },
}
SEEDS = {
    "linear": 5,
    "pca_knn": 5,
    "mlp": 5,
    "mlp_dropout": 5,
    "cnn": 3,
}  # the costly one with fewer
GLANCE = 5  # seconds between two looks at the queue
MISSES = 5  # looks in a row that find no worker, before another one is started: a busy one does not always answer
STARTS = 3  # of workers that end before their work, without an experiment that ended well between

Grid = Mapping[str, Mapping[str, object]]


def grid() -> dict[str, dict[str, object]]:
    """The changes to params.yaml of each experiment, by its name."""
    return {
        f"{dataset}-{name}-{seed}": {"dataset": dataset, "train.seed": seed, **changed}
        for (name, changed), dataset in product(SETTINGS.items(), DATASETS)
        for seed in range(SEEDS[name])
    }


def call(*command: str) -> str:
    """Runs a command; what it prints.

    It goes into files: DVC's worker outlives the command that starts it, and would hold a pipe open
    to its own end.

    An interrupt is handed on to all that it started, and waited for: DVC, killed while it queues or
    runs an experiment, would leave the workspace with the experiment's parameters.

    Raises:
        StageError: It failed.
    """
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        with subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True) as process:
            try:
                process.wait()
            except KeyboardInterrupt:
                os.killpg(process.pid, signal.SIGINT)
                process.wait()
                raise
        for file in (out, err):
            file.seek(0)
        said, complaints = out.read(), err.read()
    if process.returncode:
        words = " ".join((complaints or said).split())[-300:]
        shown = " ".join(command).removeprefix(f"{sys.executable} -m ")
        raise StageError(f"{shown}: expected exit code 0, found {process.returncode}: {words}")
    return said


def dvc(*arguments: str) -> None:
    """Runs a DVC command."""
    call(sys.executable, "-m", "dvc", *arguments)


@dataclass(frozen=True)
class Look:
    """What DVC tells of the experiments on HEAD.

    Attributes:
        head: The commit they stand on.
        finished: Name and commit of each that stands.
        waiting: Names of those queued or running.
        failed: Name of each that failed, by the commit that DVC queued it as.
        worker: Whether one runs, for whatever commit.
    """

    head: str
    finished: dict[str, str]
    waiting: set[str]
    failed: dict[str, str]
    worker: bool


def look(head: str = "") -> Look:
    """Looks at DVC's experiments and at its queue.

    Args:
        head: The commit that HEAD has to be, if any.

    Raises:
        StageError: It is another one.
    """
    with Repo() as repo:
        found, queue = repo.scm.get_rev(), repo.experiments.celery_queue
        if head and found != head:
            raise StageError(
                f"git: expected HEAD to stay at {head[:7]}, found {found[:7]}; git checkout, and start again"
            )
        finished = {
            name: commit for named in repo.experiments.ls().values() for name, commit in named
        }
        waiting = {
            entry.name
            for entry in chain(queue.iter_queued(), queue.iter_active())
            if entry.baseline_rev == found
        }
        failed = {
            done.entry.stash_rev: done.entry.name
            for done in queue.iter_failed()
            if done.entry.baseline_rev == found
        }
        return Look(found, finished, waiting, failed, bool(queue.worker_status()))


def changes(values: Mapping[str, object]) -> list[str]:
    """Values of params.yaml as DVC's command line takes them."""
    return [word for key, value in values.items() for word in ("-S", f"{key}={value}")]


def told(name: str, commit: str) -> str:
    """The accuracy of a finished experiment on its test split, in words."""
    return f"accuracy {read_run(name, commit).scores['accuracy']:.4f}"


def run_serially(todo: Grid, head: str) -> list[str]:
    """Runs experiments on HEAD one after another, each in a temporary folder; the names of those that failed."""
    failed = []
    for number, (name, values) in enumerate(todo.items(), 1):
        look(head)
        start = time.perf_counter()
        try:
            dvc("exp", "run", "--temp", "--name", name, *changes(values))
        except StageError as error:
            failed.append(name)
            said = f"failed: {error}"
        else:
            said = told(name, look(head).finished[name])
        print(
            f"{number}/{len(todo)}  {name}  {said}  {time.perf_counter() - start:.0f} s", flush=True
        )
    return failed


def run_in_queue(todo: Grid, head: str) -> list[str]:
    """Queues experiments on HEAD, starts DVC's worker and waits for it; the names of those that failed."""
    seen = look(head)
    earlier = seen.failed.keys()
    for name, values in todo.items():
        if name not in seen.waiting:
            look(head)
            dvc("exp", "run", "--queue", "--name", name, *changes(values))
            print(f"queued  {name}", flush=True)
    left, failed, starts, misses = set(todo), [], 0, MISSES
    while left:
        seen = look(head)
        misses = 0 if seen.worker else misses + 1
        if misses >= MISSES:
            if starts >= STARTS:
                raise StageError(
                    "queue: expected a worker that stays, found none; dvc queue kill, then EXPERIMENTS=--serial"
                )
            dvc("queue", "start")
            starts, misses = starts + 1, 0
        lost = {name for queued_as, name in seen.failed.items() if queued_as not in earlier}
        for name in sorted(left & (seen.finished.keys() | lost)):
            left.remove(name)
            starts = 0
            if name in seen.finished:
                said = told(name, seen.finished[name])
            else:
                failed.append(name)
                said = f"failed; dvc queue logs {name}"
            print(f"{len(todo) - len(left)}/{len(todo)}  {name}  {said}", flush=True)
        time.sleep(GLANCE)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.experiments", description=__doc__)
    parser.add_argument(
        "--serial",
        action="store_true",
        help="one after another in this process, without DVC's queue",
    )
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="one experiment by name, or all with this in it"
    )
    args = parser.parse_args()
    chosen = {name: values for name, values in grid().items() if args.only in name}
    chosen = (
        {args.only: chosen[args.only]} if args.only in chosen else chosen
    )  # a whole name means itself alone
    if not chosen:
        raise StageError(
            f"--only: expected a part of a name such as {next(iter(grid()))}, found {args.only!r}"
        )
    # What is finished is known by its name and the commit alone.
    changed = call(
        "git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!reports", ":!dvc.lock"
    )
    if changed:
        raise StageError(
            f"git: expected no change since the last commit, found {changed.split()[1]}; commit it, or git restore it"
        )
    seen = look()
    todo = {name: values for name, values in chosen.items() if name not in seen.finished}
    print(
        f"{len(chosen) - len(todo)} of {len(chosen)} experiments are there, {len(todo)} to run",
        flush=True,
    )
    if args.serial and (queued := sorted(seen.waiting & todo.keys())):
        raise StageError(
            f"queue: expected none of the experiments to run, found {queued[0]}; dvc queue kill, dvc queue remove --all"
        )
    try:
        failed = (run_serially if args.serial else run_in_queue)(todo, seen.head)
    except KeyboardInterrupt:
        if not args.serial:
            print(
                "what is queued stays so, and a worker that runs goes on; dvc queue stop --kill ends it",
                flush=True,
            )
        raise
    if failed:
        raise StageError(
            f"expected all to end well, found that {len(failed)} failed: {', '.join(failed)}"
        )
    print("make compare: which is better")


if __name__ == "__main__":
    run(main)
