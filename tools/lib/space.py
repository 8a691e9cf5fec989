"""Read search spaces: YAML files with hyperparameters and their ranges."""

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field, model_validator

from stages.lib.params import PARAMS, Line, Params, Section, check, read_params, read_yaml
from stages.lib.stage import StageError
from tools.lib.records import flat

# Trials with different validation images are not comparable, and the best seed is just lucky.
NOT_VARIED = ("dataset", "normalize.seed", "normalize.validation", "train.seed")
SECTIONS = ("normalize", "model", "train")  # validation scores depend on no others

Number = Annotated[int | float, Field(gt=-(2**53), lt=2**53)]  # exact as float64


class Range(Section):
    """Numbers from `low` to `high`: integers if the limits and the step are integers."""

    low: Number
    high: Number
    step: Number | None = None
    log: bool = False

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low below high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("low above 0 and no step, because of log")
        if self.step is not None:
            steps = (self.high - self.low) / self.step if self.step else 0.0
            if round(steps) < 1 or abs(steps - round(steps)) > 1e-9:
                raise ValueError("a step that divides high - low")
        return self

    @property
    def has_integers(self) -> bool:
        """Whether the limits and the step are integers."""
        return not any(isinstance(number, float) for number in (self.low, self.high, self.step))

    def __contains__(self, value: object) -> bool:
        """Whether `value` is a number from `low` to `high`, at a step if there are steps."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        if not self.low <= value <= self.high:
            return False
        step = self.step or (1 if self.has_integers else None)
        if step is None:
            return True
        steps = (value - self.low) / step
        return abs(steps - round(steps)) < 1e-8  # as in Optuna


class Sections(Section):
    """A search space file: values by dotted keys of params.yaml."""

    set: dict[Line, Any] = Field(default_factory=dict)
    vary: dict[Line, Any] = Field(min_length=1)


def _distribution(choice: Range | list[Any]) -> BaseDistribution:
    """Create the Optuna distribution of a choice.

    Lists are sampled by index, because their items may be lists.
    """
    if isinstance(choice, list):
        return CategoricalDistribution(range(len(choice)))
    if choice.has_integers:
        return IntDistribution(int(choice.low), int(choice.high), choice.log, int(choice.step or 1))
    return FloatDistribution(float(choice.low), float(choice.high), choice.log, choice.step)


def _decode(choice: Range | list[Any], sampled: Any) -> Any:  # noqa: ANN401
    """Convert a sample of Optuna to a value of params.yaml; floats get three significant digits."""
    if isinstance(choice, list):
        return choice[sampled]
    if isinstance(sampled, int):
        return sampled
    digits = 3 if choice.step is None else 10  # so that 0.1 + 0.2 is 0.3
    return min(max(float(f"{sampled:.{digits}g}"), float(choice.low)), float(choice.high))


def _examples(choice: Range | list[Any]) -> list[Any]:
    """Return values to validate: all of a list, or the limits of a range and a value between."""
    if isinstance(choice, list):
        return choice
    between: int | float
    if choice.step is not None:
        between = choice.low + choice.step
    elif choice.has_integers:
        between = int(choice.low) + 1
    else:
        between = choice.low + (choice.high - choice.low) / 2
    sampled = [choice.low, between, choice.high]
    convert = int if choice.has_integers else float
    return [_decode(choice, convert(number)) for number in sampled]


@dataclass(frozen=True)
class Space:
    """A valid search space.

    Attributes:
        fixed: Changes to params.yaml that all trials share.
        varied: The range or the list of values of each varied key.
    """

    fixed: Mapping[str, Any]
    varied: Mapping[str, Range | list[Any]]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The Optuna distribution of each varied key."""
        return {key: _distribution(choice) for key, choice in sorted(self.varied.items())}

    @property
    def digest(self) -> str:
        """Six hexadecimal digits that identify the space."""
        varied = {
            key: choice if isinstance(choice, list) else choice.model_dump()
            for key, choice in self.varied.items()
        }
        text = json.dumps([self.fixed, varied], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:6]

    def decode(self, sampled: Mapping[str, Any]) -> dict[str, Any]:
        """Convert a sample of Optuna to values of params.yaml."""
        return {key: _decode(choice, sampled[key]) for key, choice in self.varied.items()}

    def encode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Convert values of params.yaml to a sample of Optuna.

        Raises:
            ValueError: A value is missing, or outside its range or list.
        """
        for key, choice in self.varied.items():
            if key not in params:
                raise ValueError(f"{key}: missing")
            if params[key] not in choice:
                raise ValueError(
                    f"{key}: expected a value in the search space, found {params[key]!r}"
                )
        return {
            key: choice.index(params[key]) if isinstance(choice, list) else params[key]
            for key, choice in self.varied.items()
        }


def with_changes(content: Any, changes: Mapping[str, object]) -> Any:  # noqa: ANN401
    """Return a copy of params.yaml's content with changes by dotted key."""
    content = deepcopy(content)
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        section[last] = value
    return content


def _check_keys(sections: Sections, known: Mapping[str, object], path: Path) -> None:
    """Reject keys that are not in params.yaml or must not be set or varied."""
    for name, keys in (("set", sections.set), ("vary", sections.vary)):
        for key in keys:
            if key not in known:
                wanted = "keys of params.yaml such as train.learning_rate"
                raise StageError(f"{path}: {name}: expected {wanted}, found {key!r}")
    if "dataset" in sections.set:
        raise StageError(f"{path}: set: dataset is not allowed; use --dataset")
    for key in sections.vary:
        if key in NOT_VARIED:
            wanted = f"other keys than {', '.join(NOT_VARIED)}"
            raise StageError(f"{path}: vary: expected {wanted}, found {key!r}")
        if key in sections.set:
            raise StageError(f"{path}: {key}: expected in set or in vary, found in both")
    for name, keys in (("set", sections.set), ("vary", sections.vary)):
        for key in keys:
            if key.split(".")[0] not in SECTIONS:
                wanted = "keys of normalize, model or train"
                raise StageError(f"{path}: {name}: expected {wanted}, found {key!r}")


def _check_choice(choice: object, path: Path, key: str) -> Range | list[Any]:
    """Validate the range or the list of values of a key."""
    if isinstance(choice, dict):
        return check(Range, choice, path, "vary", key)
    if isinstance(choice, list) and len(set(map(repr, choice))) == len(choice) > 1:
        return choice
    raise StageError(
        f"{path}: vary.{key}: expected low and high, or a list of different values, "
        f"found {choice!r}"
    )


def _check_kinds(space: Space, kind: str, path: Path) -> None:
    """Reject hyperparameters of model kinds that no trial uses."""
    varied = space.varied.get("model.kind")
    kinds = varied if isinstance(varied, list) else [kind]
    for key in space.varied:
        section, name, *_ = key.split(".")
        if section == "model" and name not in ("kind", *kinds):
            wanted = f"keys of model.{' or model.'.join(kinds)}"
            raise StageError(f"{path}: vary: expected {wanted}, found {key!r}")


def read_space(path: Path) -> Space:
    """Read and validate a search space.

    Raises:
        StageError: A key is unknown, a range is empty, or a value is not valid in params.yaml.
    """
    read_params()
    content: Any = read_yaml(PARAMS)
    sections = check(Sections, read_yaml(path), path)
    _check_keys(sections, flat(content), path)
    varied = {key: _check_choice(choice, path, key) for key, choice in sections.vary.items()}
    content = with_changes(content, sections.set)
    params = check(Params, content, path)
    if not params.normalize.validation:
        raise StageError("a search needs validation images; set normalize.validation above 0")
    for key, choice in varied.items():
        for value in _examples(choice):
            check(Params, with_changes(content, {key: value}), path)
    space = Space(sections.set, varied)
    _check_kinds(space, params.model.kind, path)
    return space
