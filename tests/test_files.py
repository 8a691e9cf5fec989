"""Reading and writing of files: atomic and deterministic."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from stages.lib.files import (
    check_arrays,
    read_array,
    read_chunks,
    read_json,
    read_predictions,
    replacing,
    write_arrays,
    write_chunks,
    write_csv,
    write_figure,
    write_json,
)
from stages.lib.stage import StageError


def fill(path: Path, content: str, kind: str) -> None:
    """Create a file, or a folder with one file in it, at `path`."""
    if kind == "folder":
        path.mkdir()
        path = path / "inside"
    path.write_text(content)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content_of(path: Path) -> str:
    return (path / "inside" if path.is_dir() else path).read_text()


def fail_within(path: Path, kind: str, fault: type[BaseException]) -> None:
    """Write a part of the replacement of `path`, then fail."""
    with replacing(path) as partial:
        fill(partial, "half of the new", kind)
        raise fault


KINDS = pytest.mark.parametrize("kind", ["file", "folder"])
BEFORE = pytest.mark.parametrize("before", ["nothing", "file", "folder"])


@KINDS
def test_output_appears_when_the_block_succeeds(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "new/folders/out"
    with replacing(path) as partial:
        fill(partial, "new", kind)
        assert not path.exists()
    assert content_of(path) == "new"
    assert names_in(path.parent) == ["out"]


@KINDS
def test_existing_output_is_replaced_as_a_whole(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    fill(path, "old", kind)
    if kind == "folder":
        (path / "stale").touch()
    with replacing(path) as partial:
        fill(partial, "new", kind)
        assert content_of(path) == "old"
    assert content_of(path) == "new"
    assert not (path / "stale").exists()


@KINDS
@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
def test_existing_output_survives_a_failed_block(
    tmp_path: Path, kind: str, fault: type[BaseException]
) -> None:
    path = tmp_path / "out"
    fill(path, "old", kind)
    with pytest.raises(fault):
        fail_within(path, kind, fault)
    assert content_of(path) == "old"
    assert names_in(tmp_path) == ["out"]


@KINDS
def test_failed_block_leaves_nothing_behind(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # raised here, without a message
        fail_within(tmp_path / "out", kind, ValueError)
    assert names_in(tmp_path) == []


@KINDS
def test_block_without_output_fails(tmp_path: Path, kind: str) -> None:
    """The existing output stays."""
    path = tmp_path / "out"
    fill(path, "old", kind)
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert content_of(path) == "old"


def test_interrupted_removal_does_not_mix_old_and_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    fill(path, "old", "folder")
    (path / "stale").touch()

    def interrupted(folder: Path) -> None:
        next(folder.iterdir()).unlink()
        raise KeyboardInterrupt

    def fill_and_interrupt() -> None:
        with replacing(path) as partial:
            fill(partial, "new", "folder")
            monkeypatch.setattr(shutil, "rmtree", interrupted)

    with pytest.raises(KeyboardInterrupt):
        fill_and_interrupt()
    assert content_of(path) == "new"
    assert not (path / "stale").exists()


@KINDS
@BEFORE
def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path, kind: str, before: str) -> None:
    path = tmp_path / "out.npz"
    unfinished = replacing(path)
    partial = unfinished.__enter__()  # and never left, as by a process that is killed
    if before != "nothing":
        fill(partial, "left behind", before)
    with replacing(path) as second:
        assert second == partial
        assert not second.exists()
        fill(second, "new", kind)
    assert content_of(path) == "new"
    assert names_in(tmp_path) == ["out.npz"]


def test_temporary_name_keeps_the_suffixes(tmp_path: Path) -> None:
    with replacing(tmp_path / "model.tar.gz") as partial:
        assert partial.parent == tmp_path
        assert partial.suffixes == [".tar", ".gz"]
        partial.touch()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.dtype(">i2"), bool])
@pytest.mark.parametrize("shape", [(0,), (0, 3, 2), (1,), (7, 3, 2), (8, 3, 2), (9, 1)])
def test_chunks_round_trip(tmp_path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    path = tmp_path / "array.npy"
    write_chunks(path, shape, dtype, (array[start : start + 4] for start in range(0, shape[0], 4)))
    loaded = np.load(path, allow_pickle=False)
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)

    chunks = list(read_chunks(path, rows=4))
    assert [len(chunk) for chunk in chunks] == [
        len(array[start : start + 4]) for start in range(0, shape[0], 4)
    ]
    np.testing.assert_array_equal(np.concatenate([array[:0], *chunks]), array)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 100])
def test_last_chunk_may_be_shorter(tmp_path: Path, rows: int) -> None:
    write_arrays(tmp_path, {"array": np.arange(5)})
    sizes = [len(chunk) for chunk in read_chunks(tmp_path / "array.npy", rows)]
    assert sizes == {1: [1] * 5, 2: [2, 2, 1], 3: [3, 2], 5: [5], 100: [5]}[rows]


def test_chunks_are_cast_to_the_dtype_of_the_file(
    tmp_path: Path,
) -> None:
    """Their memory order does not matter."""
    array = np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3))
    write_chunks(tmp_path / "array.npy", (2, 3), np.float32, [array])
    loaded = np.load(tmp_path / "array.npy")
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, array)


def test_modifying_a_chunk_does_not_change_the_file(tmp_path: Path) -> None:
    write_arrays(tmp_path, {"array": np.zeros(3)})
    for chunk in read_chunks(tmp_path / "array.npy"):
        chunk += 1
    np.testing.assert_array_equal(np.load(tmp_path / "array.npy"), np.zeros(3))


def test_memory_mapped_array_is_read_only(tmp_path: Path) -> None:
    write_arrays(tmp_path, {"array": np.arange(3)})
    array = read_array(tmp_path / "array.npy")
    np.testing.assert_array_equal(array, [0, 1, 2])
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_object_arrays_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected numbers, found Python objects"):
        write_arrays(tmp_path, {"array": np.array([{}])})
    np.save(tmp_path / "array.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        read_array(tmp_path / "array.npy")


def test_json_is_indented_utf_8_in_the_given_order(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    content = {"z": 1, "a": {"é": 0.1}, "names": ["x"]}
    write_json(path, content)
    assert (
        path.read_bytes()
        == '{\n  "z": 1,\n  "a": {\n    "é": 0.1\n  },\n  "names": [\n    "x"\n  ]\n}\n'.encode()
    )
    assert read_json(path) == content


def test_csv_has_six_decimals_and_no_index(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"class": ["é", 'a, "b"'], "share": [1 / 3, 0.0], "images": [2, 1_000_000]}
    )
    write_csv(tmp_path / "out.csv", table)
    assert (tmp_path / "out.csv").read_bytes() == (
        'class,share,images\né,0.333333,2\n"a, ""b""",0.000000,1000000\n'.encode()
    )


def test_csv_without_rows_is_only_a_header(tmp_path: Path) -> None:
    write_csv(tmp_path / "out.csv", pd.DataFrame({"a": [], "b": []}))
    assert (tmp_path / "out.csv").read_bytes() == b"a,b\n"


def png_chunks(content: bytes) -> list[bytes]:
    """Chunk types of a PNG: each has length, type, content, checksum (RFC 2083, section 3)."""
    kinds, position = [], 8
    while position < len(content):
        kinds.append(content[position + 4 : position + 8])
        position += int.from_bytes(content[position : position + 4], "big") + 12
    return kinds


def test_figure_files_are_reproducible(
    tmp_path: Path,
) -> None:
    """PNG files contain neither a date nor a software version."""
    for name in ("a.png", "b.png"):
        figure = Figure((1, 1))
        figure.subplots().plot([1, 2])
        write_figure(tmp_path / name, figure)
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert set(png_chunks(content)) <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}
    assert content == (tmp_path / "b.png").read_bytes()


def test_failed_write_reports_the_path(tmp_path: Path) -> None:
    def fill_the_disk() -> None:
        with replacing(tmp_path / "out") as partial:
            partial.symlink_to("/dev/full")
            with partial.open("w") as file:
                file.write("x")

    with pytest.raises(OSError, match=r"No space left on device: '.*/out'"):
        fill_the_disk()
    assert names_in(tmp_path) == []


def record(folder: Path) -> Path:
    """Write arrays and a record of their dtypes, shapes and digests."""
    arrays: dict[str, np.ndarray] = {
        "images": np.arange(24, dtype=np.uint8).reshape(4, 3, 2),
        "labels": np.arange(4, dtype=np.float32),
    }
    empty = write_chunks(folder / "empty.npy", (0, 3), np.float32, [])
    write_json(folder / "record.json", {"arrays": write_arrays(folder, arrays) | {"empty": empty}})
    return folder / "record.json"


def test_arrays_match_their_record(
    tmp_path: Path,
) -> None:
    """The record has the dtype, the shape and the digest of the elements."""
    check_arrays(record(tmp_path), "images", "labels", "empty")
    assert read_json(tmp_path / "record.json")["arrays"]["images"] == {
        "dtype": "|u1",
        "shape": [4, 3, 2],
        "sha256": hashlib.sha256(bytes(range(24))).hexdigest(),
    }


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.arange(24, dtype=np.int8).reshape(4, 3, 2), r"\|u1.* found .*\|i1"),
        (np.arange(24, dtype=np.uint8).reshape(4, 6), r"\[4, 3, 2\].* found .*\[4, 6\]"),
        (np.zeros((4, 3, 2), np.uint8), r"\w{64}.* found .*\w{64}"),
        (
            np.asfortranarray(np.arange(24, dtype=np.uint8).reshape(4, 3, 2)),
            r"\w{64}.* found .*\w{64}",
        ),
    ],
)
def test_different_array_is_rejected(tmp_path: Path, array: np.ndarray, fault: str) -> None:
    path = record(tmp_path)
    np.save(tmp_path / "images.npy", array)
    with pytest.raises(
        StageError,
        match=rf"^\S*/images.npy: expected .*{fault}.*; "
        r"regenerate the outputs with dvc repro --force$",
    ):
        check_arrays(path, "labels", "images")


def test_flipped_or_missing_bytes_are_rejected(tmp_path: Path) -> None:
    path, images = record(tmp_path), tmp_path / "images.npy"
    content = images.read_bytes()
    blank = content.index(b"   ")  # the padding of the header is ignored
    for index in {*range(len(content))} - {*range(blank, 127)}:
        images.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
        with pytest.raises(StageError, match=r"images.npy: (expected|not a valid array file)"):
            check_arrays(path, "images")
    for length in (*range(0, len(content), 7), len(content) - 1):
        images.write_bytes(content[:length])
        with pytest.raises(StageError, match=r"images.npy: (expected|not a valid array file)"):
            check_arrays(path, "images")


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"arrays": ',
        '{"arrays": []}',
        "[]",
        '{"arrays": {}}',
        '{"arrays": {"images": 1}}',
        "\xff",
    ],
)
def test_damaged_or_incomplete_record_is_rejected(tmp_path: Path, content: str) -> None:
    path = record(tmp_path)
    path.write_bytes(content.encode("latin-1"))
    fault = "(expected .* found|not valid JSON: ).*; regenerate the outputs"
    with pytest.raises(StageError, match=fault):
        check_arrays(path, "images")


LABELS = np.array([0, 1, 2, 1], np.uint8)
DATASET = {
    "title": "Some",
    "classes": [*"abc"],
    "arrays": {"test_labels": {"sha256": hashlib.sha256(LABELS.tobytes()).hexdigest()}},
}


def predictions(**changed: np.ndarray) -> dict[str, np.ndarray]:
    rows = np.full((4, 3), 1 / 3, np.float32)
    arrays = {
        "parameters": np.array(7),
        "validation_labels": LABELS[:0],
        "validation_probabilities": rows[:0],
    }
    return arrays | {"test_labels": LABELS, "test_probabilities": rows} | changed


def test_predictions_round_trip(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", allow_pickle=False, **predictions())
    found = read_predictions(tmp_path / "p.npz", DATASET)
    assert found.keys() == predictions().keys()
    for name, array in predictions().items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"test_labels": LABELS.astype(np.int64)}, "expected dtypes and shape"),
        ({"test_labels": LABELS[:3]}, "expected dtypes and shape"),
        ({"test_labels": LABELS[::-1]}, "expected the test labels of Some, found others"),
        ({"test_labels": LABELS + np.uint8(1)}, "expected labels below 3"),
        ({"test_probabilities": np.full((4, 3), 1 / 3)}, "expected dtypes and shape"),
        ({"test_probabilities": np.full((4, 2), 1 / 2, np.float32)}, "expected dtypes and shape"),
        ({"test_probabilities": np.full((3, 3), 1 / 3, np.float32)}, "expected dtypes and shape"),
        ({"test_probabilities": np.full((4, 3), np.nan, np.float32)}, "sum to 1, found others"),
        ({"validation_labels": LABELS}, "validation: expected dtypes and shape"),
        (
            {"test_labels": np.array([{}] * 4)},
            "not a valid npz file: Object arrays",
        ),
    ],
)
def test_invalid_predictions_are_rejected(
    tmp_path: Path, changed: dict[str, np.ndarray], fault: str
) -> None:
    np.savez(tmp_path / "p.npz", allow_pickle=True, **predictions(**changed))
    with pytest.raises(
        StageError, match=rf"^\S*p.npz: .*{fault}.*; regenerate the outputs with dvc repro --force$"
    ):
        read_predictions(tmp_path / "p.npz", DATASET)


def test_damaged_predictions_are_never_misread(tmp_path: Path) -> None:
    """A flipped byte is detected or has no effect; truncated files are rejected."""
    path = tmp_path / "p.npz"
    np.savez(path, allow_pickle=False, **predictions())
    content = path.read_bytes()
    messages: list[str] = []
    for index in range(len(content)):
        path.write_bytes(
            content[:index] + bytes([content[index] ^ (1 << index % 8)]) + content[index + 1 :]
        )
        try:
            found = read_predictions(path, DATASET)
        except StageError as error:
            messages.append(str(error))
        else:  # the byte is in an unused field of the zip, such as a date
            assert all(np.array_equal(found[name], array) for name, array in predictions().items())
    assert len(messages) > len(content) / 2
    assert all(len(message.splitlines()) == 1 for message in messages)
    for length in range(0, len(content), 31):
        path.write_bytes(content[:length])
        with pytest.raises(StageError, match=r"p.npz: (expected|not a valid npz file)"):
            read_predictions(path, DATASET)
