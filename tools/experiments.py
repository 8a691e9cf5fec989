"""Run the standard grid of experiments: six configurations on each dataset, with several seeds."""

import argparse
from collections.abc import Sequence
from itertools import product

from stages.lib.sources.catalog import read_dataset
from stages.lib.stage import StageError, run
from tools.lib.execution import (
    Outcome,
    add_workers_option,
    clean_head,
    finished,
    report,
    run_on_workers,
    run_serially,
)
from tools.lib.experiment import check_remotes
from tools.lib.runs import read_run

DATASETS = ("mnist", "fashion_mnist")
ONE_CYCLE: dict[str, object] = {
    "model.kind": "mlp",
    "normalize.method": "standardize",
    "train.schedule": "one_cycle",
    "train.learning_rate": 0.0006,
    "train.epochs": 20,
}
# The configurations of the grid, as changes to params.yaml, and their numbers of replicates.
CONFIGURATIONS: dict[str, dict[str, object]] = {
    "linear": {"model.kind": "linear"},
    "pca_knn": {"model.kind": "pca_knn"},
    "mlp": {"model.kind": "mlp"},
    "mlp_one_cycle": ONE_CYCLE,
    "mlp_dropout": {**ONE_CYCLE, "model.mlp.dropout": 0.2},
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


def grid(datasets: Sequence[str] = DATASETS) -> dict[str, dict[str, object]]:
    """Return the changes to params.yaml of each experiment, by name.

    Each replicate has its own seed for training and for the choice of the training images, so that
    results generalize over both (docs/experiments.md).
    """
    return {
        f"{dataset}-{name}-{seed}": {
            "dataset": dataset,
            "train.seed": seed,
            "normalize.seed": seed,
            **changed,
        }
        for (name, changed), dataset in product(CONFIGURATIONS.items(), datasets)
        for seed in range(SEEDS[name])
    }


def matches(name: str, part: str) -> bool:
    """Return whether `part` is one or more adjacent, whole parts of a dash-separated name."""
    return f"-{part}-" in f"-{name}-"


def describe(outcome: Outcome) -> str:
    """Format the test accuracy of a finished experiment."""
    return f"accuracy {read_run(outcome.name, outcome.result()).scores['accuracy']:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.experiments", description=__doc__)
    group = parser.add_mutually_exclusive_group()
    add_workers_option(group)
    group.add_argument(
        "--push",
        metavar="REMOTE",
        default="",
        help="push each experiment to this Git remote and the DVC remote; skip those already there",
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
        help=f"files in datasets/; default: {' '.join(DATASETS)}",
    )
    args = parser.parse_args()
    for dataset in args.datasets:
        read_dataset(dataset)
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
    commit = clean_head()
    done = {} if args.push else finished(commit)
    todo = {name: values for name, values in chosen.items() if name not in done}
    count = len(chosen) - len(todo)
    print(f"{count} of {len(chosen)} experiments are finished, {len(todo)} to run", flush=True)
    if args.push:
        check_remotes(args.push, commit)
    if args.workers and not args.push:
        from tools.lib.workers import prepare, pull_finished  # imports Dask

        url = prepare(commit)
        if names := pull_finished(commit, [*todo]):
            todo = {name: values for name, values in todo.items() if name not in names}
            print(f"{len(names)} already on the remotes, {len(todo)} to run", flush=True)
        outcomes = run_on_workers(todo.items(), commit, url, args.workers, ahead=True)
    else:
        outcomes = run_serially(todo.items(), commit, args.push)
    failed = report(outcomes, describe, len(todo)) if todo else []
    if failed:
        raise StageError(f"{len(failed)} of {len(todo)} experiments failed: {', '.join(failed)}")
    if not args.push:
        print("to compare them: make compare")


if __name__ == "__main__":
    run(main)
