"""Run the standard grid of experiments: six configurations on each dataset, with several seeds."""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from distributed import as_completed

from stages.lib.sources.catalog import read_dataset
from stages.lib.stage import StageError, run
from tools.lib.experiment import bring, call, run_experiment, settings
from tools.lib.runs import read_run
from tools.lib.workers import open_tasks, prepare, pull_finished

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


def head() -> str:
    """The commit of HEAD."""
    return call("git", "rev-parse", "HEAD").strip()


def finished(commit: str) -> dict[str, str]:
    """The experiments of a commit in this clone: their commits by name."""
    below = f"refs/exps/{commit[:2]}/{commit[2:]}/"
    listed = call("git", "for-each-ref", "--format=%(refname) %(objectname)", below).splitlines()
    return {ref.removeprefix(below): found for ref, found in (line.split() for line in listed)}


def describe(name: str, commit: str) -> str:
    """The test accuracy of a finished experiment."""
    return f"accuracy {read_run(name, commit).scores['accuracy']:.4f}"


def run_serially(todo: Grid, commit: str, remote: str) -> list[str]:
    """Run experiments on HEAD one by one in temporary folders; return those that failed.

    Args:
        todo: Experiments to run.
        commit: Where HEAD must stay.
        remote: The Git remote to bring each to; empty for none.
    """
    failed = []
    for number, (name, values) in enumerate(todo.items(), 1):
        if (found := head()) != commit:
            raise StageError(
                f"HEAD moved from {commit[:7]} to {found[:7]} while experiments ran; "
                f"git checkout {commit[:7]} and start again"
            )
        start = time.perf_counter()
        try:
            if remote:
                result = describe(name, bring(remote, commit, name, settings(values)))
            else:
                run_experiment(name, settings(values))
                result = describe(name, finished(commit)[name])
        except StageError as error:
            failed.append(name)
            result = f"failed: {error}"
        seconds = time.perf_counter() - start
        print(f"{number}/{len(todo)}  {name}  {result}  {seconds:.0f} s", flush=True)
    return failed


def run_on_workers(todo: Grid, commit: str, workers: str) -> list[str]:
    """Run experiments on Dask workers that bring them to the remotes; return those that failed.

    Args:
        todo: Experiments to run.
        commit: On the Git remote.
        workers: Their number on this machine, or the address of a Dask scheduler.
    """
    url = prepare(commit)
    names = pull_finished(commit, [*todo])
    todo = {name: values for name, values in todo.items() if name not in names}
    if names:
        print(f"the remotes have {len(names)} of them, {len(todo)} to run", flush=True)
    failed: list[str] = []
    if not todo:
        return failed
    with open_tasks(workers, commit, url) as tasks:
        if not tasks.workers:
            print("no workers yet; experiments start when one joins", flush=True)
        futures = {tasks.submit(name, settings(values)): name for name, values in todo.items()}
        for number, future in enumerate(as_completed(futures), 1):
            name = futures[future]
            try:
                found, seconds = tasks.finish(future, name)
                result = f"{describe(name, found)}  {seconds} s"
            except StageError as error:
                failed.append(name)
                result = f"failed: {error}"
            print(f"{number}/{len(todo)}  {name}  {result}", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.experiments", description=__doc__)
    parser.add_argument(
        "--workers",
        metavar="N|ADDRESS",
        default=os.environ.get("DASK_SCHEDULER_ADDRESS", ""),
        help="run on so many Dask workers on this machine, or on those of a scheduler "
        "(tcp://HOST:8786; default: DASK_SCHEDULER_ADDRESS)",
    )
    parser.add_argument(
        "--push",
        metavar="REMOTE",
        default="",
        help="bring each to this Git remote and to the DVC remote, unless they have it",
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
    commit = head()
    done = {} if args.push else finished(commit)
    todo = {name: values for name, values in chosen.items() if name not in done}
    count = len(chosen) - len(todo)
    print(f"{count} of {len(chosen)} experiments are finished, {len(todo)} to run", flush=True)
    if args.workers and not args.push:
        failed = run_on_workers(todo, commit, args.workers)
    else:
        failed = run_serially(todo, commit, args.push)
    if failed:
        raise StageError(f"{len(failed)} of {len(todo)} experiments failed: {', '.join(failed)}")
    print("compare them: make compare")


if __name__ == "__main__":
    run(main)
