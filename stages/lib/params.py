"""Read YAML files as DVC does, and params.yaml as validated, frozen objects."""

import re
import reprlib
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from yaml import MarkedYAMLError, Node, SafeLoader, ScalarNode, YAMLError
from yaml.constructor import ConstructorError

from stages.lib.stage import StageError, is_printable, run

PARAMS = Path("params.yaml")

Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _printable(text: str) -> str:
    # A NUL is invalid in file names, a lone surrogate cannot be encoded, a line feed breaks logs.
    if not is_printable(text):
        raise ValueError("text of printable characters in one line")
    return text


Line = Annotated[str, AfterValidator(_printable)]


def _held_out(value: object) -> float | str:
    if type(value) is int and value >= 0:
        return value
    if value == "published" or (type(value) is float and 0 < value < 1):
        return value
    raise ValueError("a number of images, a fraction of them below 1, or published")


class Section(BaseModel):
    """A section of a YAML file, without missing or unknown keys; values are never converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Section)


class FetchParams(Section):
    source: Line


class NormalizeParams(Section):
    method: Literal["min_max", "standardize"]
    validation: Annotated[int | float | str, PlainValidator(_held_out)]
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
    label_smoothing: float = Field(ge=0, lt=1)


class EvaluateParams(Section):
    temperature: bool


class PlotParams(Section):
    seed: Seed
    samples: int = Field(ge=1, le=100)
    pairs: int = Field(ge=1, le=100)


class ExtractErrorsParams(Section):
    seed: Seed
    examples: int = Field(ge=1, le=100)


class Params(Section):
    """All of params.yaml. Each stage validates all of it, so that a typo fails the first stage."""

    dataset: Line
    fetch: FetchParams
    normalize: NormalizeParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams
    plot: PlotParams
    extract_errors: ExtractErrorsParams


class Loader(getattr(yaml, "CSafeLoader", SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader, in C if available, with the scalars of YAML 1.2 and strict mappings.

    DVC reads YAML 1.2 with ruamel.yaml. In YAML 1.1, PyYAML's default, the `1e-05` that `dvc exp
    run -S train.learning_rate=0.00001` writes is text, `yes` is a boolean and `12:30` is 750.
    """

    nesting = 0

    def descend_resolver(self, parent: Node | None, index: object) -> None:
        """Limit the nesting, because the parser in C overflows the stack and crashes."""
        self.nesting += 1
        if self.nesting > 100:
            mark = parent.start_mark if parent else None
            raise ConstructorError(None, None, "more than 100 levels of nesting", mark)

    def ascend_resolver(self) -> None:
        """Leave a level that `descend_resolver` entered."""
        self.nesting -= 1

    def flatten_mapping(self, node: Any) -> None:  # noqa: ANN401  # a yaml.MappingNode
        """Resolve the merge keys of a mapping, once, and refuse duplicate keys."""
        if hasattr(node, "flat"):
            return
        node.flat = True
        keys = [key for key, _ in node.value if isinstance(key, ScalarNode)]
        super().flatten_mapping(node)
        if len(node.value) > 10_000:  # a short file can multiply them by merging merged mappings
            raise ConstructorError(None, None, "more than 10,000 merged keys", node.start_mark)
        names = set()
        for key in keys:
            merge = key.tag == "tag:yaml.org,2002:merge"
            name = key.value if merge else self.construct_object(key)
            if name in names:
                problem = f'duplicate key "{key.value}"'
                raise ConstructorError(None, None, problem, key.start_mark)
            names.add(name)

    def construct_yaml_int(self, node: ScalarNode) -> int:
        """Convert an integer, which is decimal after leading zeros: 017 is 17."""
        digits = re.sub(r"^([-+]?)0+(?=\d)", r"\1", node.value.replace("_", ""))
        return int(digits, base=0)


Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if not tag.endswith((":bool", ":float", ":int"))
    ]
    for first, resolvers in SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (  # the patterns of ruamel.yaml
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", "[-+]?(0b[01_]+|0o?[0-7_]+|[0-9_]+|0x[0-9a-fA-F_]+)", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9_]+([eE][-+][0-9]+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), [*_first]
    )
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


def parse_yaml(text: str, name: object) -> object:
    """Parse YAML as DVC does, without running any code in it.

    Args:
        text: The YAML.
        name: The file name for error messages.

    Returns:
        Mappings, lists, text, numbers, booleans, None and dates.

    Raises:
        StageError: The text is not YAML 1.2.
    """
    try:
        return yaml.load(text, Loader)  # noqa: S506  # a subclass of the safe loader
    except MarkedYAMLError as error:
        number = error.problem_mark.line if error.problem_mark else 0
        line = "".join(text.splitlines()[number : number + 1])
        raise StageError(
            f"{name}, line {number + 1}: expected YAML, found {reprlib.repr(line)}: "
            f"{error.problem}; fix the file"
        ) from error
    except (YAMLError, ValueError, LookupError, AttributeError, OverflowError, TypeError) as error:
        words = " ".join(str(error).split())
        raise StageError(f"{name}: expected YAML, found: {words}; fix the file") from error


def read_yaml(path: Path) -> object:
    """Read a YAML file with `parse_yaml`.

    Raises:
        StageError: The file is not UTF-8, or not YAML 1.2.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StageError(
            f"{path}: expected UTF-8 text, found: {error.reason}; fix the file"
        ) from error
    return parse_yaml(text, path)


def _keys(kind: Any, location: Iterable[int | str]) -> list[str]:  # noqa: ANN401
    """Return the valid keys of the section at a location inside `kind`, a class or a dict type."""
    for key in location:
        kind = (
            kind.model_fields[key].annotation
            if hasattr(kind, "model_fields")
            else get_args(kind)[-1]
        )
    return list(kind.model_fields)


def check(kind: type[Kind], content: object, path: Path, *prefix: str) -> Kind:
    """Validate a section of a YAML file.

    Args:
        kind: The schema.
        content: The parsed section.
        path: The file, for error messages.
        prefix: The keys of the section in the file, for error messages.

    Raises:
        StageError: A key is missing, unknown, of the wrong type or out of range. The message
            names the first one.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        # A typo is both a missing and an unknown key; report the unknown one, which was typed.
        fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        key = repr(".".join(map(str, (*prefix, *fault["loc"]))))[1:-1] or "the file"
        found = f"found {reprlib.repr(fault['input'])}"
        if fault["type"] == "extra_forbidden":
            names = ", ".join(_keys(kind, fault["loc"][:-1]))
            raise StageError(f"{path}: {key}: unknown key; expected one of {names}") from error
        if fault["type"] == "missing":
            raise StageError(f"{path}: {key}: missing") from error
        if fault["type"] == "model_type":
            expected = "a section with keys"
        elif fault["type"] == "string_type":
            expected = "text"
            null_in_list = fault["input"] is None and isinstance(fault["loc"][-1], int)
            if null_in_list or isinstance(fault["input"], bool | int | float | date):
                found += "; put it in quotes"
        else:
            expected = re.sub(
                "^(Input|String|List|Dictionary|Value error,) (should (be|match|have) )?",
                "",
                fault["msg"],
            )
        raise StageError(f"{path}: {key}: expected {expected}, {found}") from error


def read_params() -> Params:
    """Read and validate params.yaml in the working directory.

    Raises:
        StageError: A key is missing, unknown, of the wrong type or out of range, the file is not
            YAML, or temperature scaling has no validation split.
    """
    params = check(Params, read_yaml(PARAMS), PARAMS)
    if params.evaluate.temperature and not params.normalize.validation:
        raise StageError(
            f"{PARAMS}: evaluate.temperature: temperature scaling needs a validation split, "
            "but normalize.validation is 0; change one of the two"
        )
    return params


if __name__ == "__main__":  # validates params.yaml; prints nothing if it is valid
    run(read_params)
