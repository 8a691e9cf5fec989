"""Run commands in turn, each in its own process, and compare their measurements."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf, sqrt
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import t as student

from benchmarks.workspace import environment

MEASURED = Path(__file__).with_name("measured.py")


@dataclass(frozen=True)
class Command:
    """A command to measure.

    Attributes:
        name: Name in tables.
        command: Program and arguments; `{round}` is replaced by the number of the round, from 0.
        cwd: Working directory.
        before: Restores the initial state, given the number of the round; not measured.
        variables: Additional environment variables.
    """

    name: str
    command: Sequence[str | Path]
    cwd: Path
    before: Callable[[int], None] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


Runs = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Interval:
    """A measurement with its 95% confidence interval."""

    value: float
    low: float
    high: float


def run(command: Command, number: int) -> dict[str, Any]:
    """Run a command once.

    Args:
        command: The command.
        number: Number of the round.

    Returns:
        `wall` (seconds from start to end of the process), `peak` (maximum resident bytes), and the
        content of the last line of stdout if it is JSON.

    Raises:
        RuntimeError: The command failed.
    """
    if command.before:
        command.before(number)
    words = [str(word).replace("{round}", str(number)) for word in command.command]
    with tempfile.NamedTemporaryFile("r") as note:
        done = subprocess.run(
            [sys.executable, "-S", MEASURED, note.name, *words],
            cwd=command.cwd,
            env=environment(**command.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(
                f"{command.name}: {' '.join(words)}: exit code {done.returncode}\n{done.stdout}"
            )
        result: dict[str, Any] = json.load(note)
    lines = done.stdout.splitlines()
    return result | (json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {})


def in_turn(commands: Sequence[Command], rounds: int, *, warm_up: bool = True) -> Runs:
    """Run all commands once per round (A B C A B C), so that a slow minute affects all of them.

    Args:
        commands: The commands in order.
        rounds: Number of rounds.
        warm_up: Whether to run an additional first round and discard it.

    Returns:
        Results of each command by its name, a dictionary per round.
    """
    runs: Runs = {command.name: [] for command in commands}
    for number in range(-1 if warm_up else 0, rounds):
        for command in commands:
            result = run(command, max(number, 0))
            label = "warm-up" if number < 0 else number + 1
            print(f"  {label}  {command.name}: {result['wall']:.1f} s", flush=True)
            if number >= 0:
                runs[command.name].append(result)
    return runs


def middle(runs: Runs, name: str, key: str = "wall") -> float:
    """Return the median of a measurement over the rounds."""
    return float(median(result[key] for result in runs[name]))


def mean_interval(values: Sequence[float]) -> Interval:
    """Compute the geometric mean of one value per round, with Student's interval of the logarithms.

    With a single value the interval is unbounded.
    """
    logs = np.log(values)
    center = float(logs.mean())
    if len(logs) == 1:
        return Interval(exp(center), 0.0, inf)
    half = float(student.ppf(0.975, len(logs) - 1) * logs.std(ddof=1)) / sqrt(len(logs))
    return Interval(exp(center), exp(center - half), exp(center + half))


def ratio(runs: Runs, other: str, ours: str, key: str = "wall") -> Interval:
    """Compute the ratio of another command's measurement to ours, paired by round."""
    pairs = zip(runs[other], runs[ours], strict=True)
    return mean_interval([result[key] / own[key] for result, own in pairs])


def mean_of(runs: Runs, name: str, key: str = "wall", unit: float = 1.0) -> Interval:
    """Compute the mean of a measurement over the rounds, in a unit such as 1e9 for GB."""
    return mean_interval([result[key] / unit for result in runs[name]])
