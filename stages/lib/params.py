"""params.yaml and datasets.yaml as checked, frozen dataclasses."""

import re
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from stages.lib.stage import StageError

PARAMS = Path("params.yaml")

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Section(BaseModel):
    """A part of a YAML file: no key missing, none unknown, none converted from another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Section)


class FetchParams(Section):
    source: str


class NormalizeParams(Section):
    method: Literal["min_max", "standardize"]
    validation: int = Field(ge=0)
    seed: Seed


class MlpParams(Section):
    hidden: list[Annotated[int, Field(ge=1, le=100_000)]]
    dropout: float = Field(ge=0, lt=1)


class LinearParams(Section):
    l2: float = Field(ge=0)


class ModelParams(Section):
    kind: Literal["mlp", "linear"]
    mlp: MlpParams
    linear: LinearParams


class TrainParams(Section):
    seed: Seed
    epochs: int = Field(ge=1, le=10_000)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0, le=10)
    schedule: Literal["constant", "one_cycle"]


class PlotParams(Section):
    seed: Seed
    samples: int = Field(ge=1, le=100)
    pairs: int = Field(ge=1, le=100)


class ExtractErrorsParams(Section):
    seed: Seed
    examples: int = Field(ge=1, le=100)


class Params(Section):
    """All of params.yaml; every stage checks the whole file, so that no run stops halfway over a typo."""

    dataset: str
    fetch: FetchParams
    normalize: NormalizeParams
    model: ModelParams
    train: TrainParams
    plot: PlotParams
    extract_errors: ExtractErrorsParams


class Split(Section):
    train: int = Field(ge=1)
    test: int = Field(ge=1)


class Arrays(Section):
    """Something for each of the four arrays that make a data set."""

    train_images: str
    train_labels: str
    test_images: str
    test_labels: str


class Digests(Arrays):
    """SHA-256 of each array's bytes: uint8, C order."""

    train_images: Sha256
    train_labels: Sha256
    test_images: Sha256
    test_labels: Sha256


class Source(Section):
    """One place that has the data set: exactly one of the five ways in, and what its files are called there.

    The files are one npz with x_train, y_train, x_test and y_test, as Keras publishes data sets; or a CSV per split,
    with a header and then a row per image, its label before its pixels; or a file per array, IDX as MNIST's authors
    published it.
    """

    url: Annotated[str, Field(pattern="^https://.+/$")] | None = None
    kaggle: Annotated[str, Field(pattern="^[^/]+/[^/]+$")] | None = None
    npm: Annotated[str, Field(pattern="^[^@]+@[^@]+$")] | None = None
    debian: Annotated[str, Field(pattern="^[a-z0-9.+-]+$")] | None = None
    folder: str | None = None
    files: dict[str, str]

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        ways = ("url", "kaggle", "npm", "debian", "folder")
        if sum(getattr(self, way) is not None for way in ways) != 1:
            raise ValueError(f"exactly one of {', '.join(ways)}")
        if set(self.files) not in ({"npz"}, {"train_csv", "test_csv"}, set(Arrays.model_fields)):
            raise ValueError(f"files: npz; or train_csv and test_csv; or {', '.join(Arrays.model_fields)}")
        return self


class Dataset(Section):
    """An entry of datasets.yaml."""

    title: str
    licence: str
    classes: list[str] = Field(min_length=2, max_length=256)
    image: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
    images: Split
    sha256: Digests
    sources: dict[str, Source] = Field(min_length=1)


def _read_yaml(path: Path) -> object:
    # YAML 1.2 as DVC reads it: `dvc exp run -S train.learning_rate=0.00001` writes 1e-05,
    # which YAML 1.1 (PyYAML) takes for a text.
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise StageError(f"{path}{where}: expected YAML, found: {error.problem}; mend the file") from error
    except UnicodeDecodeError as error:
        raise StageError(f"{path}: expected UTF-8 text, found: {error.reason}; mend the file") from error


def _keys(kind: Any, location: Iterable[int | str]) -> list[str]:  # noqa: ANN401  # a class, or dict[str, class]
    """The keys that the schema knows at a place inside `kind`."""
    for key in location:
        kind = kind.model_fields[key].annotation if hasattr(kind, "model_fields") else get_args(kind)[-1]
    return list(kind.model_fields)


def _check(kind: type[Kind], content: object, path: Path, *prefix: str) -> Kind:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        # A typo is both a missing and an unknown key: the unknown one is what was typed.
        fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        key = ".".join(map(str, (*prefix, *fault["loc"]))) or "the file"
        found = f"found {reprlib.repr(fault['input'])}"
        if fault["type"] == "extra_forbidden":
            expected, found = f"one of {', '.join(_keys(kind, fault['loc'][:-1]))}", "found this unknown key"
        elif fault["type"] == "missing":
            expected, found = "a value", "found no such key"
        elif fault["type"] == "model_type":
            expected = "a section with keys"
        else:
            expected = re.sub("^(Input|String|List|Value error,) (should (be|match|have) )?", "", fault["msg"])
        raise StageError(f"{path}: {key}: expected {expected}, {found}") from error


def read_params() -> Params:
    """Reads and checks params.yaml in the working directory.

    Returns:
        All parameters, of which a stage uses those that dvc.yaml lists for it.

    Raises:
        StageError: A key is missing, unknown, of the wrong type or out of range; or the file is no YAML.
    """
    return _check(Params, _read_yaml(PARAMS), PARAMS)


def read_dataset(catalogue: Path, name: str) -> Dataset:
    """Reads and checks one entry of datasets.yaml.

    Args:
        catalogue: The file.
        name: The entry's key, as in `dataset` of params.yaml.

    Returns:
        The entry.

    Raises:
        StageError: No such entry; or a fault in it, as in `read_params`.
    """
    entries = _read_yaml(catalogue)
    if not isinstance(entries, dict) or name not in entries:
        known = ", ".join(map(str, entries)) if isinstance(entries, dict) else "no data set at all"
        raise StageError(f"{PARAMS}: dataset: expected an entry of {catalogue} ({known}), found {name!r}")
    return _check(Dataset, entries[name], catalogue, name)
