"""Hyperparameter search with Optuna, in which trials are DVC experiments.

The experiments are the only record. Their names contain the dataset, the digest of the search space
and the number of the trial, so any clone that has them can resume the search.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import t as student

from stages.lib.params import parse_yaml
from stages.lib.results.metrics import brier, cross_entropy
from stages.lib.stage import StageError
from tools.lib.execution import Experiment, Outcome
from tools.lib.experiment import call
from tools.lib.records import flat
from tools.lib.runs import METRICS, MORE_SCORES, PREDICTIONS, Run
from tools.lib.significance import ALPHA, accuracy_interval, mean_interval
from tools.lib.space import Space

# Scores to optimize. They are means over the validation images, so they have an interval.
DIRECTIONS: dict[str, Literal["minimize", "maximize"]] = {
    "validation.loss": "minimize",
    "validation.accuracy": "maximize",
    "validation.brier": "minimize",
}


def check_score(name: str) -> None:
    """Check that a score can be optimized.

    Raises:
        StageError: It is a score of the test split, or not in `DIRECTIONS`.
    """
    if name in DIRECTIONS:
        return
    reason = "" if name.startswith("validation.") else "; test scores must not be used for tuning"
    raise StageError(f"--on: expected {' or '.join(DIRECTIONS)}, found {name!r}{reason}")


def removal(name: str) -> str:
    """Return the advice to remove a trial."""
    return f"run dvc exp remove {name}, and again with --git-remote origin if it was pushed"


def read_trial(name: str, commit: str, score: str) -> tuple[dict[str, object], float]:
    """Read the parameters of an experiment by dotted key, and a validation score.

    Raises:
        StageError: The score is missing or not a number.
    """

    def show(path: str) -> str:
        return call("git", "show", f"{commit}:./{path}")

    content: Any = parse_yaml(show("params.yaml"), "params.yaml")
    wanted = f"a number as {score} in its reports"
    try:
        scores = [json.loads(show(path))["validation"] for path in (METRICS, MORE_SCORES)]
        found = (scores[1] | scores[0])[score.removeprefix("validation.")]
    except (LookupError, TypeError, json.JSONDecodeError) as error:
        raise StageError(f"{name}: expected {wanted}, found none; {removal(name)}") from error
    if not isinstance(found, int | float) or math.isnan(found):
        raise StageError(f"{name}: expected {wanted}, found {found}; {removal(name)}")
    return flat(content), float(found)


@dataclass
class Search:
    """The trials of a search, with which Optuna proposes the next one.

    Attributes:
        dataset: Name of the dataset.
        space: The search space.
        score: The score to optimize, a key of `DIRECTIONS`.
        trials: Trials by number.
    """

    dataset: str
    space: Space
    score: str
    trials: dict[int, FrozenTrial] = field(default_factory=dict)

    def name(self, number: int) -> str:
        """Return the name of a trial's experiment."""
        return f"{self.dataset}-search-{self.space.digest}-{number}"

    def number(self, name: str) -> int:
        """Return the number of the trial with this name, or -1 if it belongs to another search."""
        found = re.fullmatch(rf"{re.escape(self.name(0)[:-1])}(0|[1-9]\d*)", name)
        return int(found[1]) if found else -1

    def changes(self, values: Mapping[str, object]) -> dict[str, object]:
        """Return the changes to params.yaml of a trial with these values of the varied keys."""
        return {"dataset": self.dataset, **self.space.fixed, **values}

    def ask(self, number: int) -> dict[str, object]:
        """Propose values of the varied keys for the trial with this number.

        They depend only on the trials so far and the number, which seeds a new Optuna study with
        these trials. An interrupted search thus continues as if it had not been interrupted. The
        sampler avoids the neighborhood of running trials.
        """
        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        sampler = optuna.samplers.TPESampler(seed=number, constant_liar=True)
        study = optuna.create_study(direction=DIRECTIONS[self.score], sampler=sampler)
        study.add_trials([trial for _, trial in sorted(self.trials.items())])
        values = self.space.decode(study.ask(self.space.distributions).params)
        self.record(number, values, state=TrialState.RUNNING)
        return values

    def experiments(self, numbers: Iterable[int]) -> Iterator[Experiment]:
        """Yield the trials with these numbers; propose each one when it is taken."""
        for number in numbers:
            yield self.name(number), self.changes(self.ask(number))

    def add(self, name: str, commit: str) -> float:
        """Record a finished trial, and return its score.

        Raises:
            StageError: Its parameters are outside the search space, or the score is missing.
        """
        params, value = read_trial(name, commit, self.score)
        try:
            self.space.encode(params)
        except ValueError as error:
            raise StageError(f"{name}: {error}; {removal(name)}") from error
        self.record(self.number(name), params, value=value)
        return value

    def tell(self, outcome: Outcome) -> str:
        """Record the outcome of a trial, and describe it.

        Raises:
            StageError: The trial failed.
        """
        number = self.number(outcome.name)
        self.record(number, self.values(number), state=TrialState.FAIL)
        value = self.add(outcome.name, outcome.result())
        return f"{self.score} {value:.4f}"

    def record(self, number: int, params: Mapping[str, Any], **outcome: Any) -> None:  # noqa: ANN401
        """Record a trial with its parameters and its value or state."""
        self.trials[number] = create_trial(
            params=self.space.encode(params), distributions=self.space.distributions, **outcome
        )

    @property
    def finished(self) -> dict[int, float]:
        """The scores of the finished trials by number."""
        return {n: trial.value for n, trial in self.trials.items() if trial.value is not None}

    @property
    def best(self) -> int:
        """The number of the best trial."""
        sign = 1 if DIRECTIONS[self.score] == "minimize" else -1
        return min(self.finished, key=lambda number: (sign * self.finished[number], number))

    def values(self, number: int) -> dict[str, object]:
        """Return the values of the varied keys of a trial."""
        return self.space.decode(self.trials[number].params)


def scores_per_image(run: Run, score: str) -> np.ndarray:
    """Compute the score of each validation image, whose mean is the validation score.

    Args:
        run: A finished run.
        score: A key of `DIRECTIONS`.

    Returns:
        Shape (n,), bool for the accuracy, else float64.
    """
    predictions = run.read(PREDICTIONS)
    labels, probabilities = (
        predictions[f"validation_{name}"] for name in ("labels", "probabilities")
    )
    if score == "validation.accuracy":
        correct: np.ndarray = probabilities.argmax(axis=1) == labels
        return correct
    function = cross_entropy if score == "validation.loss" else brier
    ends = range(1, len(labels) + 1)
    return np.array([function(labels[end - 1 : end], probabilities[end - 1 : end]) for end in ends])


def interval(runs: Sequence[Run], score: str) -> tuple[float, float, float]:
    """Compute the mean validation score of runs that differ in seeds, and its 95% interval.

    The confidence interval is for new images and, with several runs, for new seeds. Unless the
    dataset publishes a validation split, runs with different `normalize.seed` have different
    validation images: the variance between runs then includes that between images, and the
    interval is Student's t interval.

    Returns:
        Mean, lower end, upper end.
    """
    scores = [scores_per_image(run, score) for run in runs]
    means = np.array([each.mean() for each in scores])
    mean = float(means.mean())
    if len(runs) > 1 and runs[0].params["normalize.validation"] != "published":
        half = float(student.ppf(1 - ALPHA / 2, len(runs) - 1) * means.std(ddof=1))
        half /= len(runs) ** 0.5
        return mean, mean - half, mean + half
    of_images = accuracy_interval if score == "validation.accuracy" else mean_interval
    return mean, *of_images(np.stack(scores))
