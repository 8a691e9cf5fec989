"""params.yaml as checked, frozen objects."""

import re
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from stages.lib.stage import StageError, run

PARAMS = Path("params.yaml")

Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _printable(text: str) -> str:
    if (
        not text.isprintable()
    ):  # a NUL is no file's name, half a surrogate cannot be written, a line feed lies in a log
        raise ValueError("text of printable characters in one line")
    return text


Line = Annotated[str, AfterValidator(_printable)]


class Section(BaseModel):
    """A part of a YAML file: no key missing, none unknown, none converted from another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Section)


class FetchParams(Section):
    source: Line


class NormalizeParams(Section):
    method: Literal["min_max", "standardize"]
    validation: int = Field(ge=0)
    seed: Seed


class MlpParams(Section):
    hidden: list[Annotated[int, Field(ge=1, le=100_000)]]
    dropout: float = Field(ge=0, lt=1)


class LinearParams(Section):
    l2: float = Field(ge=0)


class PcaKnnParams(Section):
    components: int = Field(ge=1)
    neighbors: int = Field(ge=1)


class CnnParams(Section):
    filters: list[Annotated[int, Field(ge=1, le=4096)]]
    depth: int = Field(ge=1, le=10)
    dropout: float = Field(ge=0, lt=1)
    shift: float = Field(ge=0)
    rotation: float = Field(ge=0, le=180)
    flip: bool


class ModelParams(Section):
    kind: Literal["mlp", "linear", "pca_knn", "cnn"]
    mlp: MlpParams
    linear: LinearParams
    pca_knn: PcaKnnParams
    cnn: CnnParams


class TrainParams(Section):
    seed: Seed
    epochs: int = Field(ge=1, le=10_000)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0, le=10)
    schedule: Literal["constant", "one_cycle"]


class EvaluateParams(Section):
    temperature: bool


class PlotParams(Section):
    seed: Seed
    samples: int = Field(ge=1, le=100)
    pairs: int = Field(ge=1, le=100)


class ExtractErrorsParams(Section):
    seed: Seed
    examples: int = Field(ge=1, le=100)
    suspects: int = Field(ge=1)


class Params(Section):
    """All of params.yaml; every stage checks the whole file, so that no run stops halfway over a typo."""

    dataset: Line
    fetch: FetchParams
    normalize: NormalizeParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams
    plot: PlotParams
    extract_errors: ExtractErrorsParams


def read_yaml(path: Path) -> object:
    """Reads a YAML file as DVC reads it; runs no code in it.

    Args:
        path: The file.

    Returns:
        What it holds.

    Raises:
        StageError: It is no UTF-8, or no YAML 1.2.
    """
    # `dvc exp run -S train.learning_rate=0.00001` writes 1e-05: a number in YAML 1.2, which DVC
    # reads, but a text in YAML 1.1, which PyYAML reads.
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise StageError(
            f"{path}{where}: expected YAML, found: {error.problem}; mend the file"
        ) from error
    except UnicodeDecodeError as error:
        raise StageError(
            f"{path}: expected UTF-8 text, found: {error.reason}; mend the file"
        ) from error
    except (YAMLError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise StageError(
            f"{path}: expected YAML, found: {' '.join(str(error).split())}; mend the file"
        ) from error


def _keys(kind: Any, location: Iterable[int | str]) -> list[str]:  # noqa: ANN401  # a class, or dict[str, class]
    """The keys that the schema knows at a place inside `kind`."""
    for key in location:
        kind = (
            kind.model_fields[key].annotation
            if hasattr(kind, "model_fields")
            else get_args(kind)[-1]
        )
    return list(kind.model_fields)


def check(kind: type[Kind], content: object, path: Path, *prefix: str) -> Kind:
    """Checks a part of a YAML file.

    Args:
        kind: What the part must be.
        content: What was read.
        path: The file, for the message.
        prefix: The keys under which the part stands in the file, for the message.

    Returns:
        The part.

    Raises:
        StageError: A key is missing, unknown, of the wrong type or out of range: the first one
            found.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        # A typo is both a missing and an unknown key: the unknown one is what was typed.
        fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        key = repr(".".join(map(str, (*prefix, *fault["loc"]))))[1:-1] or "the file"
        found = f"found {reprlib.repr(fault['input'])}"
        if fault["type"] == "extra_forbidden":
            expected, found = (
                f"one of {', '.join(_keys(kind, fault['loc'][:-1]))}",
                "found a key with this name",
            )
        elif fault["type"] == "missing":
            expected, found = "a value", "found no such key"
        elif fault["type"] == "model_type":
            expected = "a section with keys"
        else:
            expected = re.sub(
                "^(Input|String|List|Dictionary|Value error,) (should (be|match|have) )?",
                "",
                fault["msg"],
            )
        raise StageError(f"{path}: {key}: expected {expected}, {found}") from error


def read_params() -> Params:
    """Reads and checks params.yaml in the working directory.

    Returns:
        All parameters, of which a stage uses those that dvc.yaml lists for it.

    Raises:
        StageError: A key is missing, unknown, of the wrong type or out of range; or the file is no
            YAML.
    """
    params = check(Params, read_yaml(PARAMS), PARAMS)
    if params.evaluate.temperature and not params.normalize.validation:
        raise StageError(
            f"{PARAMS}: evaluate.temperature: expected a validation split to choose it on, "
            "found normalize.validation: 0; change one of the two"
        )
    return params


if __name__ == "__main__":  # checks params.yaml and says nothing if it is right
    run(read_params)
