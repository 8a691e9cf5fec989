"""Runs contenders in turn, each as a process of its own, and compares their medians."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.workspace import environment

MEASURED = Path(__file__).with_name("measured.py")


@dataclass(frozen=True)
class Contender:
    """A command to time.

    Args:
        name: What tables call it.
        command: The command; `{round}` in it becomes the number of the round, from 0.
        cwd: Where it runs.
        before: Brings things into the state to start from; told the round; not timed.
        variables: More environment variables.
    """

    name: str
    command: Sequence[str | Path]
    cwd: Path
    before: Callable[[int], None] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


Runs = dict[str, list[dict[str, Any]]]


def run(contender: Contender, number: int) -> dict[str, Any]:
    """Runs a contender once.

    Args:
        contender: What to run.
        number: The round.

    Returns:
        `wall` (seconds from start to end of the process), `peak` (bytes resident at most), and what
        a last line of JSON on its standard output says.
    """
    if contender.before:
        contender.before(number)
    command = [str(word).replace("{round}", str(number)) for word in contender.command]
    with tempfile.NamedTemporaryFile("r") as note:
        done = subprocess.run(
            [sys.executable, "-S", MEASURED, note.name, *command],
            cwd=contender.cwd,
            env=environment(**contender.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(
                f"{contender.name}: {' '.join(command)}: exit code {done.returncode}\n{done.stdout}"
            )
        result: dict[str, Any] = json.load(note)
    lines = done.stdout.splitlines()
    return result | (json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {})


def in_turn(contenders: Sequence[Contender], rounds: int, *, warm_up: bool = True) -> Runs:
    """Runs all contenders once for each round, A B C A B C, so that a slow minute of the machine falls on all.

    Args:
        contenders: In the order of their turns.
        rounds: How often each is counted.
        warm_up: Whether a round that does not count comes first.

    Returns:
        Results of each contender by its name, a dictionary per round.
    """
    runs: Runs = {contender.name: [] for contender in contenders}
    for number in range(-1 if warm_up else 0, rounds):
        for contender in contenders:
            result = run(contender, max(number, 0))
            print(
                f"  {'warm-up' if number < 0 else number + 1}  {contender.name}: {result['wall']:.1f} s",
                flush=True,
            )
            if number >= 0:
                runs[contender.name].append(result)
    return runs


def middle(runs: Runs, name: str, key: str = "wall") -> float:
    """Median of one measurement of a contender over the rounds."""
    return float(median(result[key] for result in runs[name]))


def ratio(runs: Runs, other: str, ours: str, key: str = "wall") -> float:
    """How many times as much the other needs: the ratio of the medians."""
    return middle(runs, other, key) / middle(runs, ours, key)
