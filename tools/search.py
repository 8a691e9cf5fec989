"""Search hyperparameters on the validation split; every trial is a DVC experiment on HEAD."""

import argparse
from collections.abc import Generator, Iterable, Mapping
from itertools import count, islice
from pathlib import Path

from stages.lib.params import read_params
from stages.lib.sources.catalog import read_dataset
from stages.lib.stage import StageError, run
from tools.lib.execution import (
    Experiment,
    Outcome,
    add_workers_option,
    clean_head,
    finished,
    report,
    run_on_workers,
    run_serially,
)
from tools.lib.runs import read_run
from tools.lib.search import Search, check_score, interval, read_trial
from tools.lib.space import read_space


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.search", description=__doc__)
    parser.add_argument(
        "--trials",
        type=int,
        default=20,
        metavar="N",
        help="total number of trials, including finished ones (default: %(default)s)",
    )
    parser.add_argument(
        "--on",
        default="validation.loss",
        metavar="SCORE",
        help="validation.loss (default), validation.accuracy or validation.brier",
    )
    parser.add_argument(
        "--space",
        type=Path,
        default=Path("searches/mlp.yaml"),
        metavar="FILE",
        help="the search space (default: %(default)s)",
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="a file in datasets/ (default: that of params.yaml)"
    )
    parser.add_argument(
        "--confirm",
        type=int,
        default=0,
        metavar="K",
        help="then run the best configuration with K new seeds",
    )
    add_workers_option(parser)
    arguments = parser.parse_args()
    for option, least in (("trials", 1), ("confirm", 0)):
        if (found := getattr(arguments, option)) < least:
            raise StageError(f"--{option}: expected at least {least}, found {found}")
    check_score(arguments.on)
    arguments.dataset = arguments.dataset or read_params().dataset
    read_dataset(arguments.dataset)
    return arguments


def pull_experiments(names: Iterable[str], commit: str, workers: str) -> dict[str, str]:
    """Return the experiments of this clone; with workers, pull those with these names first."""
    here = finished(commit)
    if workers:
        from tools.lib.workers import pull_finished  # imports Dask

        if pull_finished(commit, [name for name in names if name not in here]):
            here = finished(commit)
    return here


def run_each(
    experiments: Iterable[Experiment], commit: str, url: str, workers: str
) -> Generator[Outcome, None, None]:
    """Run experiments serially or on workers; take each one when it can start."""
    if workers:
        return run_on_workers(experiments, commit, url, workers, ahead=False)
    return run_serially(experiments, commit)


def describe_interval(score: str, mean: float, low: float, high: float) -> str:
    return f"{score} {mean:.4f}, 95% confidence interval {low:.4f} to {high:.4f}"


def summarize(search: Search, commit: str) -> str:
    """Describe the best trial, its score with confidence interval, and the next commands."""
    name = search.name(search.best)
    trials = len(search.finished)
    values = [f"    {key}: {value}" for key, value in search.values(search.best).items()]
    score = describe_interval(search.score, *interval([read_run(name, commit)], search.score))
    lines = [
        f"{trials} trials finished; the best is {name}:",
        *values,
        f"{score}, for new images",
        f"The best of {trials} scores is optimistically biased; "
        "--confirm K reruns the best trial with K new seeds.",
        f"to apply it: dvc exp apply {name}",
        f'to compare it: make compare COMPARE="{name} REV"',
    ]
    return "\n".join(lines)


def confirmations(search: Search, commit: str, seeds: int) -> dict[str, Mapping[str, object]]:
    """Return the experiments that run the best configuration with new seeds: changes by name.

    Args:
        search: A search with a finished trial.
        commit: Commit of the best trial.
        seeds: Number of new seeds.
    """
    best = search.name(search.best)
    params, _ = read_trial(best, commit, search.score)
    used = [params["train.seed"], params["normalize.seed"]]
    changes = search.changes(search.values(search.best))
    return {
        f"{best}-seed{seed}": {**changes, "train.seed": seed, "normalize.seed": seed}
        for seed in islice((seed for seed in count() if seed not in used), seeds)
    }


def confirm(search: Search, commit: str, url: str, workers: str, seeds: int) -> list[str]:
    """Run the best configuration with new seeds and print its score; return failed experiments."""
    best = finished(commit)[search.name(search.best)]
    experiments = confirmations(search, best, seeds)
    here = pull_experiments(experiments, commit, workers)
    todo = {name: changes for name, changes in experiments.items() if name not in here}

    def describe(outcome: Outcome) -> str:
        return f"{search.score} {read_trial(outcome.name, outcome.result(), search.score)[1]:.4f}"

    outcomes = run_each(todo.items(), commit, url, workers)
    failed = report(outcomes, describe, len(todo)) if todo else []
    here = finished(commit)
    runs = [read_run(name, here[name]) for name in experiments if name in here]
    if runs:
        score = describe_interval(search.score, *interval(runs, search.score))
        scope = "new seeds and images" if len(runs) > 1 else "new images"
        print(f"{len(runs)} new seeds: {score}, for {scope}")
    return failed


def main() -> None:
    arguments = parse_arguments()
    workers, trials = arguments.workers, range(arguments.trials)
    search = Search(arguments.dataset, read_space(arguments.space), arguments.on)
    commit = clean_head()
    url = ""
    if workers:
        from tools.lib.workers import prepare  # imports Dask

        url = prepare(commit)
    for name, found in pull_experiments(map(search.name, trials), commit, workers).items():
        if search.number(name) >= 0:
            search.add(name, found)
    done = len(search.finished)
    missing = [number for number in trials if number not in search.finished]
    total = done + len(missing)
    print(f"{done} of {total} trials are finished, {len(missing)} to run", flush=True)
    failed = []
    if missing:
        outcomes = run_each(search.experiments(missing), commit, url, workers)
        failed = report(outcomes, search.tell, total, done + 1)
    if search.finished:
        print(summarize(search, finished(commit)[search.name(search.best)]))
        if arguments.confirm:
            failed += confirm(search, commit, url, workers, arguments.confirm)
    if failed:
        raise StageError(f"{len(failed)} experiments failed: {', '.join(failed)}")


if __name__ == "__main__":
    run(main)
