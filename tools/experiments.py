"""Run the standard grid of experiments: six configurations on each dataset, with several seeds."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from tempfile import TemporaryFile

from dvc.repo import Repo

from stages.lib.sources.catalog import read_dataset
from stages.lib.stage import StageError, run
from tools.lib.runs import read_run

DATASETS = ("mnist", "fashion_mnist")
ONE_CYCLE: dict[str, object] = {
    "model.kind": "mlp",
    "train.schedule": "one_cycle",
    "train.learning_rate": 0.003,
    "train.batch_size": 250,
    "train.epochs": 20,
}
# The configurations of the grid: where each differs from params.yaml, and its number of replicates.
SETTINGS: dict[str, dict[str, object]] = {
    "linear": {"model.kind": "linear"},
    "pca_knn": {"model.kind": "pca_knn"},
    "mlp": {"model.kind": "mlp"},
    "mlp_one_cycle": ONE_CYCLE,
    "mlp_dropout": {
        **ONE_CYCLE,
        "model.mlp.dropout": 0.3,
    },  # differs from the last one in this only
    "cnn": {
        "model.kind": "cnn",
        "train.schedule": "one_cycle",
        "train.learning_rate": 0.005,
        "train.epochs": 16,
    },
}
SEEDS = {
    "linear": 10,
    "pca_knn": 1,  # deterministic
    "mlp": 10,
    "mlp_one_cycle": 10,
    "mlp_dropout": 10,
    "cnn": 5,  # the most expensive
}
POLL_INTERVAL = 5  # seconds
MAX_MISSES = 5  # polls in a row without a worker before another starts: a busy one may not answer
MAX_STARTS = 3  # workers started in a row that exit without finishing an experiment

Grid = Mapping[str, Mapping[str, object]]


def grid(datasets: Sequence[str] = DATASETS) -> dict[str, dict[str, object]]:
    """The changes to params.yaml of each experiment, by its name.

    A replicate has a seed of its own for training and for the choice of the training images, so
    that results hold for both (docs/experiments.md).
    """
    return {
        f"{dataset}-{name}-{seed}": {
            "dataset": dataset,
            "train.seed": seed,
            "normalize.seed": seed,
            **changed,
        }
        for (name, changed), dataset in product(SETTINGS.items(), datasets)
        for seed in range(SEEDS[name])
    }


def matches(name: str, part: str) -> bool:
    """Whether `part` is one or more whole, adjacent parts of a name that dashes separate."""
    return f"-{part}-" in f"-{name}-"


def call(*command: str) -> str:
    """Run a command and return its stdout.

    Output goes to files because the DVC worker outlives the command that starts it and would keep a
    pipe open.

    SIGINT is passed on to the command's process group, and the command is waited for: killing DVC
    while it queues or runs an experiment would leave the experiment's parameters in the workspace.

    Raises:
        StageError: The command failed.
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
        output, errors = out.read(), err.read()
    if process.returncode:
        shown = " ".join(command).removeprefix(f"{sys.executable} -m ")
        reason = " ".join((errors or output).split())[-300:]
        raise StageError(f"{shown}: exit code {process.returncode}: {reason}")
    return output


def dvc(*arguments: str) -> None:
    """Run a DVC command."""
    call(sys.executable, "-m", "dvc", *arguments)


@dataclass(frozen=True)
class State:
    """DVC's experiments on HEAD and its queue.

    Attributes:
        head: Commit of HEAD.
        finished: Commit of each finished experiment by name.
        waiting: Names of queued and running experiments.
        failed: Name of each failed experiment by the commit that DVC queued.
        worker: Whether a queue worker is running, for any commit.
    """

    head: str
    finished: dict[str, str]
    waiting: set[str]
    failed: dict[str, str]
    worker: bool


def read_state(head: str = "") -> State:
    """Read DVC's experiments on HEAD and its queue.

    Args:
        head: The commit that HEAD must be at; empty for any.

    Raises:
        StageError: HEAD is at another commit.
    """
    with Repo() as repo:
        found, queue = repo.scm.get_rev(), repo.experiments.celery_queue
        if head and found != head:
            raise StageError(
                f"HEAD moved from {head[:7]} to {found[:7]} while experiments ran; "
                f"git checkout {head[:7]} and start again"
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
        return State(found, finished, waiting, failed, bool(queue.worker_status()))


def changes(values: Mapping[str, object]) -> list[str]:
    """Command-line options of DVC that set values of params.yaml."""
    return [word for key, value in values.items() for word in ("-S", f"{key}={value}")]


def describe(name: str, commit: str) -> str:
    """The test accuracy of a finished experiment."""
    return f"accuracy {read_run(name, commit).scores['accuracy']:.4f}"


def run_serially(todo: Grid, head: str) -> list[str]:
    """Run experiments on HEAD one by one in temporary folders; return those that failed."""
    failed = []
    for number, (name, values) in enumerate(todo.items(), 1):
        read_state(head)
        start = time.perf_counter()
        try:
            dvc("exp", "run", "--temp", "--name", name, *changes(values))
        except StageError as error:
            failed.append(name)
            result = f"failed: {error}"
        else:
            result = describe(name, read_state(head).finished[name])
        seconds = time.perf_counter() - start
        print(f"{number}/{len(todo)}  {name}  {result}  {seconds:.0f} s", flush=True)
    return failed


def run_in_queue(todo: Grid, head: str) -> list[str]:
    """Queue experiments on HEAD, start a DVC worker, wait; return those that failed."""
    state = read_state(head)
    earlier = state.failed.keys()
    for name, values in todo.items():
        if name not in state.waiting:
            read_state(head)
            dvc("exp", "run", "--queue", "--name", name, *changes(values))
            print(f"queued  {name}", flush=True)
    left, failed, starts, misses = set(todo), [], 0, MAX_MISSES
    while left:
        state = read_state(head)
        misses = 0 if state.worker else misses + 1
        if misses >= MAX_MISSES:
            if starts >= MAX_STARTS:
                raise StageError(
                    f"the DVC queue worker exited {MAX_STARTS} times without finishing a run; "
                    "run `dvc queue kill`, then `make experiments EXPERIMENTS=--serial`"
                )
            dvc("queue", "start")
            starts, misses = starts + 1, 0
        new = {name for queued, name in state.failed.items() if queued not in earlier}
        for name in sorted(left & (state.finished.keys() | new)):
            left.remove(name)
            starts = 0
            if name in state.finished:
                result = describe(name, state.finished[name])
            else:
                failed.append(name)
                result = f"failed; dvc queue logs {name}"
            print(f"{len(todo) - len(left)}/{len(todo)}  {name}  {result}", flush=True)
        time.sleep(POLL_INTERVAL)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.experiments", description=__doc__)
    parser.add_argument(
        "--serial", action="store_true", help="run one by one in this process, without DVC's queue"
    )
    parser.add_argument(
        "--only",
        metavar="NAME",
        help="run one experiment, or all whose names contain these dash-separated parts "
        "(cnn, mnist-linear)",
    )
    parser.add_argument(
        "--datasets",
        nargs="+",
        metavar="NAME",
        default=DATASETS,
        help=f"entries of datasets.yaml; default: {' '.join(DATASETS)}",
    )
    args = parser.parse_args()
    for dataset in args.datasets:
        read_dataset(Path("datasets.yaml"), dataset)
    experiments = grid(args.datasets)
    chosen = {
        name: values
        for name, values in experiments.items()
        if args.only is None or matches(name, args.only)
    }
    if not chosen:
        raise StageError(
            f"--only: expected whole parts of a name such as {next(iter(experiments))}, "
            f"found {args.only!r}"
        )
    # Finished experiments are identified by name and commit alone.
    changed = call(
        *("git", "diff", "HEAD", "--name-only", "--relative", "--", ".", ":!reports", ":!dvc.lock")
    )
    if changed:
        path = changed.splitlines()[0]
        raise StageError(
            f"{path} has uncommitted changes; commit them or run `git checkout HEAD -- {path}`"
        )
    state = read_state()
    todo = {name: values for name, values in chosen.items() if name not in state.finished}
    done = len(chosen) - len(todo)
    print(f"{done} of {len(chosen)} experiments are finished, {len(todo)} to run", flush=True)
    if args.serial and (queued := sorted(state.waiting & todo.keys())):
        raise StageError(
            f"{queued[0]} is already queued; run without --serial, or empty the queue with "
            "`dvc queue kill` and `dvc queue remove --all`"
        )
    try:
        failed = (run_serially if args.serial else run_in_queue)(todo, state.head)
    except KeyboardInterrupt:
        if not args.serial:
            print(
                "queued experiments stay queued, and a running worker continues; "
                "`dvc queue stop --kill` stops it",
                flush=True,
            )
        raise
    if failed:
        raise StageError(f"{len(failed)} of {len(todo)} experiments failed: {', '.join(failed)}")
    print("compare them: make compare")


if __name__ == "__main__":
    run(main)
