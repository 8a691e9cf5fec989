"""Run experiments on HEAD, serially in this clone or on Dask workers."""

import argparse
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from stages.lib.stage import StageError
from tools.lib.experiment import call, head, overrides, reference, run_and_push, run_experiment

if TYPE_CHECKING:
    from distributed import Future

Experiment = tuple[str, Mapping[str, object]]  # name and changes to params.yaml


@dataclass(frozen=True)
class Outcome:
    """Result of an experiment.

    Attributes:
        name: Name of the experiment.
        commit: Commit of the experiment; empty if it failed.
        seconds: Duration; empty if unknown.
        error: Error message; empty if it succeeded.
    """

    name: str
    commit: str
    seconds: str
    error: str = ""

    def result(self) -> str:
        """Return the experiment's commit.

        Raises:
            StageError: The experiment failed.
        """
        if self.error:
            raise StageError(self.error)
        return self.commit


def add_workers_option(parser: argparse._ActionsContainer) -> None:
    """Add --workers."""
    parser.add_argument(
        "--workers",
        metavar="N|ADDRESS",
        default=os.environ.get("DASK_SCHEDULER_ADDRESS", ""),
        help="number of local Dask workers, or address of a Dask scheduler such as tcp://HOST:8786 "
        "(default: DASK_SCHEDULER_ADDRESS)",
    )


def clean_head() -> str:
    """Return the commit of HEAD; the working tree must be clean.

    Finished experiments are identified by name and commit alone.

    Raises:
        StageError: A file has uncommitted changes.
    """
    changed = call(
        *("git", "diff", "HEAD", "--name-only", "--relative", "--", ".", ":!reports", ":!dvc.lock")
    )
    if changed:
        path = changed.splitlines()[0]
        raise StageError(
            f"{path} has uncommitted changes; commit them or run `git checkout HEAD -- {path}`"
        )
    return head()


def finished(commit: str) -> dict[str, str]:
    """Return the experiments of a commit in this clone: their commits by name."""
    below = reference(commit, "")
    listed = call("git", "for-each-ref", "--format=%(refname) %(objectname)", below).splitlines()
    return {ref.removeprefix(below): found for ref, found in (line.split() for line in listed)}


def run_serially(
    experiments: Iterable[Experiment], commit: str, remote: str = ""
) -> Generator[Outcome, None, None]:
    """Run experiments on HEAD one by one in temporary folders.

    Args:
        experiments: Each is taken after the previous one has ended.
        commit: The commit of HEAD, which must not move.
        remote: The Git remote to push each experiment to; empty for none.
    """
    for name, changes in experiments:
        if (found := head()) != commit:
            raise StageError(
                f"HEAD moved from {commit[:7]} to {found[:7]} while experiments ran; "
                f"run `git checkout {commit[:7]}` and start again"
            )
        start = time.perf_counter()
        result, error = "", ""
        try:
            if remote:
                result = run_and_push(remote, commit, name, overrides(changes))
            else:
                run_experiment(name, overrides(changes))
                result = finished(commit)[name]
        except StageError as failure:
            error = str(failure)
        yield Outcome(name, result, f"{time.perf_counter() - start:.0f}", error)


def run_on_workers(
    experiments: Iterable[Experiment], commit: str, url: str, workers: str, *, ahead: bool
) -> Generator[Outcome, None, None]:
    """Run experiments on Dask workers that push them to the remotes; yield them as they end.

    Args:
        experiments: Experiments to run.
        commit: Commit of the project that is on the Git remote.
        url: Address of the Git remote, from `prepare`.
        workers: Number of workers on this machine, or the address of a Dask scheduler.
        ahead: Whether to submit all experiments at once. If not, each is taken from `experiments`
            when a worker is free.
    """
    from distributed import as_completed  # slow to import, needed with workers only

    from tools.lib.workers import open_tasks

    remaining = iter(experiments)
    names: dict[Future, str] = {}
    with open_tasks(workers, commit, url) as tasks:
        running = as_completed()
        while True:
            slots = max(1, sum(tasks.threads().values()))
            free = None if ahead else max(0, slots - running.count())
            for name, changes in islice(remaining, free):
                future = tasks.submit(name, overrides(changes))
                names[future] = name
                running.add(future)
            if running.is_empty():
                return
            future = next(running)
            name = names.pop(future)
            try:
                outcome = Outcome(name, *tasks.finish(future, name))
            except StageError as failure:
                outcome = Outcome(name, "", "", str(failure))
            del future  # or the scheduler keeps a failure for other coordinators
            yield outcome


def report(
    outcomes: Generator[Outcome, None, None],
    describe: Callable[[Outcome], str],
    total: int,
    first: int = 1,
) -> list[str]:
    """Print a line for each experiment as it ends; return the names of those that failed.

    Args:
        outcomes: From `run_serially` or `run_on_workers`.
        describe: Describes the result of an experiment; raises StageError if it failed.
        total: Number of experiments to print.
        first: Number of the first experiment.
    """
    failed = []
    with closing(outcomes):
        for number, outcome in enumerate(outcomes, first):
            try:
                result = describe(outcome)
            except StageError as error:
                failed.append(outcome.name)
                result = f"failed: {error}"
            seconds = f"  {outcome.seconds} s" if outcome.seconds else ""
            print(f"{number}/{total}  {outcome.name}  {result}{seconds}", flush=True)
    return failed
