# mypy: disable-error-code="func-returns-value"
"""Import of user images: the supported layouts, and the message for each fault."""

import gzip
import io
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from stages.lib.sources.catalog import read_dataset
from stages.lib.sources.fetching import fetch_arrays
from stages.lib.stage import StageError
from tests.helpers import clone_env, copy_files, idx, read_entry
from tools import dataset
from tools.lib import decoding, imports

Arrays = dict[str, np.ndarray]
RNG = np.random.default_rng(3)
ONE = RNG.integers(0, 256, (6, 5), dtype=np.uint8)  # some image
NOISE = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)  # forty different ones
TWO = np.arange(40) % 2
DATA = Path("input")


@pytest.fixture(autouse=True)
def _in_project(project: Path) -> None:
    """The catalog, the tiny dataset, and a folder for the input."""
    (project / "input").mkdir()


def write(name: str, content: bytes | str) -> None:
    """Writes a file of the input."""
    path = DATA / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def png(name: str, image: np.ndarray | Image.Image = ONE, **options: Any) -> None:  # noqa: ANN401
    path = DATA / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **options)


def npz(name: str = "d.npz", **arrays: Any) -> None:  # noqa: ANN401
    content = io.BytesIO()
    np.savez(content, **arrays)
    write(name, content.getvalue())


def folders(images: np.ndarray = NOISE, labels: Any = TWO, below: str = "") -> None:  # noqa: ANN401
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        png(f"{below}{label}/{row}.png", image)


def csv(rows: Any, header: str = "", end: str = "\n") -> str:  # noqa: ANN401  # a list or an array
    lines = [",".join(map(str, row)) for row in np.asarray(rows).tolist()]
    return end.join([header] * bool(header) + lines) + end


def zipped(*names: str) -> bytes:
    """A zip of files of the input, which are removed."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.write(DATA / name, name)
            (DATA / name).unlink()
    return content.getvalue()


def make(path: Path | str = DATA, name: str = "mine", **options: Any) -> Arrays:  # noqa: ANN401
    """Imports the input, and fetches the dataset as the pipeline does."""
    dataset.make(Path(path), imports.Options(name, **options), {})
    return fetch_arrays(read_dataset(name), "auto")


def classes(name: str = "mine") -> list[str]:
    return read_dataset(name).classes


def report(name: str = "mine") -> str:
    return Path(f"reports/data/{name}.md").read_text()


def fault(path: Path | str = DATA, **options: Any) -> str:  # noqa: ANN401
    """Why an import is refused: in one line, and nothing is left behind."""
    with pytest.raises(StageError) as caught:
        dataset.make(Path(path), imports.Options(**({"name": "mine"} | options)), {})
    assert len(str(caught.value).splitlines()) == 1
    assert not Path("datasets/mine.yaml").exists()
    assert not list(Path("data").glob("*/*"))
    assert not Path("reports/data").exists()
    return str(caught.value)


def in_order(arrays: Arrays) -> Arrays:
    """Each split's images and labels in the order of their bytes."""
    ordered: Arrays = {}
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        order = sorted(range(len(labels)), key=lambda row: (labels[row], images[row].tobytes()))
        ordered |= {f"{split}_images": images[order], f"{split}_labels": labels[order]}
    return ordered


def assert_same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


DIGITS = load_digits()


def split_digits() -> Arrays:
    """The first 300 digits: 240 to train on and 60 to test."""
    images, labels = DIGITS.images[:300].astype(np.uint8), DIGITS.target[:300].astype(np.uint8)
    train = {"train_images": images[:240], "train_labels": labels[:240]}
    return train | {"test_images": images[240:], "test_labels": labels[240:]}


def as_png(digits: Arrays) -> None:
    for split in ("train", "test"):
        folders(digits[f"{split}_images"], digits[f"{split}_labels"], f"{split}/")


def as_csv(digits: Arrays) -> None:
    for split in ("train", "test"):
        images = digits[f"{split}_images"].reshape(-1, 64)
        write(f"digits_{split}.csv", csv(np.c_[images, digits[f"{split}_labels"]]))


def as_medmnist(digits: Arrays) -> None:
    columns = {name: a[:, None] if a.ndim == 1 else a for name, a in digits.items()}
    npz("digits.npz", **columns)


def as_idx(digits: Arrays) -> None:
    """Labels from 1, gzipped."""
    for name, array in digits.items():
        ndim = array.ndim
        file = name.replace("test", "t10k").replace("_", "-") + f"-idx{ndim}-ubyte.gz"
        write(file, gzip.compress(idx(array + (ndim == 1))))


@pytest.mark.parametrize("form", [as_png, as_csv, as_medmnist, as_idx])
def test_every_layout_gives_bit_identical_arrays(form: Callable[[Arrays], None]) -> None:
    digits = split_digits()
    form(digits)
    arrays = make()
    assert_same(in_order(arrays), in_order(digits))
    if form is not as_png:  # published order stays
        assert_same(arrays, digits)
    assert classes() == [str(n + (form is as_idx)) for n in range(10)]


def test_split_is_independent_of_layout() -> None:
    images, labels = DIGITS.images[:300].astype(np.uint8), DIGITS.target[:300]
    folders(images, labels, "png/")
    write("one/digits.csv", csv(np.c_[labels, images.reshape(300, 64)][::-1]))
    npz("two/digits.npz", X=images.astype(float), y=labels.astype(float))
    one, two, three = (in_order(make(DATA / name)) for name in ("png", "one", "two"))
    assert_same(one, two)
    assert_same(one, three)


def test_split_is_stratified() -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, 6, 5), dtype=np.uint8)
    npz(images=images, labels=np.repeat([0, 1, 2], [100, 60, 40]))
    arrays = make(test=0.3)
    assert np.bincount(arrays["test_labels"]).tolist() == [30, 18, 12]
    other = make(test=0.3, seed=1)
    assert not np.array_equal(arrays["test_images"], other["test_images"])


def test_identical_images_are_never_in_both_splits() -> None:
    images = NOISE[np.arange(80) % 25]
    npz(images=images, labels=np.arange(80) % 25 % 5)
    arrays = make()
    train = {image.tobytes() for image in arrays["train_images"]}
    assert not train & {image.tobytes() for image in arrays["test_images"]}
    assert len(arrays["train_images"]) + len(arrays["test_images"]) == 80


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "VALID"])
def test_split_folders_share_one_list_of_classes(validation: str) -> None:
    folders(NOISE[:20], ["2", "10"] * 10, "Train/")
    folders(NOISE[20:26], ["10"] * 6, f"{validation}/")
    folders(NOISE[26:30], ["2", "2", "10", "10"], "test/")
    arrays = make()
    assert classes() == ["2", "10"]
    assert read_dataset("mine").images.validation == 6
    assert arrays["train_labels"].tolist() == [0] * 10 + [1] * 16
    assert arrays["test_labels"].tolist() == [0, 0, 1, 1]


def test_nested_folders_and_suffixes_of_any_case() -> None:
    folders(NOISE[:10], ["a"] * 10, "")
    for row, suffix in enumerate([".PNG", ".bmp", ".Tif", ".tiff", ".gif"]):
        png(f"b/more/{row}{suffix}", NOISE[10 + row])
    arrays = make()
    assert sum(len(arrays[f"{split}_labels"]) for split in ("train", "test")) == 15


def test_other_files_are_skipped_and_counted(tmp_path: Path) -> None:
    folders()
    for name in (".DS_Store", "0/Thumbs.db", "__MACOSX/0/._1.png", "0/notes.txt", "stray.png"):
        write(name, b"x")
    (DATA / "2").mkdir()
    (DATA / "0/link.png").symlink_to(tmp_path / "params.yaml")
    (DATA / "3").symlink_to("0")
    arrays = make()
    assert len(arrays["train_labels"]) + len(arrays["test_labels"]) == 40
    for line in (
        "hidden files and thumbnails: 2",
        "__MACOSX: 1",
        "other files: 1",
        "empty folders: 1",
        "links to folders or out of the given path: 2",
        "images outside class folders: 1",
    ):
        assert f"skipped, {line}" in report(), report()


def test_zip_with_a_top_level_folder() -> None:
    folders(below="letters/")
    names = [str(path.relative_to(DATA)) for path in DATA.rglob("*.png")]
    write("letters.zip", zipped(*sorted(names)))
    assert classes() == ["0", "1"] if len(make(DATA / "letters.zip")) else False


def test_files_next_to_the_only_folder_are_skipped() -> None:
    folders(below="letters/")
    png("cover.png")
    write("LICENSE.txt", "MIT")
    make()
    assert classes() == ["0", "1"]
    assert "skipped, files next to the only folder: 2" in report()


def test_folder_without_images_does_not_hide_an_npz() -> None:
    npz(images=NOISE, labels=TWO)
    write("docs/more/notes.txt", "x")
    make()
    assert classes() == ["0", "1"]


def test_class_may_be_called_train() -> None:
    folders(labels=np.array(["train", "bus"])[TWO])
    make()
    assert classes() == ["bus", "train"]


def test_classes_next_to_splits_are_rejected() -> None:
    folders(below="train/")
    png("bus/a.png")
    assert "expected only folders of splits next to train, found bus" in fault()


def test_validation_images_are_not_moved_to_test() -> None:
    folders(below="train/")
    folders(NOISE[:20], TWO[:20], below="val/")
    make()
    assert "in several splits" in report()  # train and validation
    entry = read_dataset("mine")
    assert entry.images.validation == 20
    test = {image.tobytes() for image in fetch_arrays(entry, "auto")["test_images"]}
    assert len(test) == 8
    assert not test & {image.tobytes() for image in NOISE[:20]}


def test_dataset_in_a_zip_is_selected_by_name() -> None:
    for name in ("letters", "digits"):
        for split, rows in (("train", slice(30)), ("test", slice(30, 40))):
            shift = 1 if name == "letters" else 0
            for kind, array in (("images-idx3", NOISE[rows]), ("labels-idx1", TWO[rows] + shift)):
                content = gzip.compress(idx(array.astype(np.uint8)))
                write(f"gzip/emnist-{name}-{split}-{kind}-ubyte.gz", content)
    names = [str(path.relative_to(DATA)) for path in DATA.rglob("*.gz")]
    write("gzip.zip", zipped(*names))
    arrays = make(DATA / "gzip.zip", "letters", transposed=True)
    assert classes("letters") == ["1", "2"]
    np.testing.assert_array_equal(arrays["train_images"], NOISE[:30].swapaxes(1, 2))


def test_one_array_per_npz_as_in_kmnist() -> None:
    for split, rows in (("train", slice(30)), ("test", slice(30, 40))):
        for kind, array in (("imgs", NOISE), ("labels", TWO)):
            content = io.BytesIO()
            np.savez(content, array[rows])
            write(f"kmnist-{split}-{kind}.npz", content.getvalue())
    arrays = make()
    np.testing.assert_array_equal(arrays["test_images"], NOISE[30:])


PIXELS = NOISE[:, :4, :4].reshape(40, 16)
NAMES = ",".join(f"p{n}" for n in range(16))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(csv(np.c_[TWO, PIXELS]), id="label-first"),
        pytest.param(csv(np.c_[PIXELS, TWO]), id="label-last"),
        pytest.param(csv(np.c_[TWO, PIXELS], f"label,{NAMES}"), id="header"),
        pytest.param(csv(np.c_[PIXELS, TWO], f"{NAMES},Class"), id="class-last"),
        pytest.param(
            csv(np.c_[PIXELS[:, :3], TWO, PIXELS[:, 3:]], NAMES.replace("p3", "target,p3")),
            id="target-inside",
        ),
        pytest.param(csv(np.c_[PIXELS, TWO], f"{NAMES},y"), id="header-without-label"),
        pytest.param(csv(np.c_[np.arange(40), PIXELS, TWO], f",{NAMES},label"), id="pandas-index"),
        pytest.param(
            csv(np.c_[PIXELS, TWO], ",".join(map(str, range(17)))), id="numbers-as-header"
        ),
        pytest.param(csv(np.c_[np.array(["A", "B"])[TWO], PIXELS.astype(str)]), id="texts"),
        pytest.param(csv(np.c_[PIXELS.astype(float), TWO]), id="floats"),
        pytest.param("\ufeff" + csv(np.c_[TWO, PIXELS], f"label,{NAMES}", "\r\n"), id="windows"),
    ],
)
def test_csv_variants_give_equal_images(text: str) -> None:
    write("d.csv", text)
    arrays = make()
    npz("again/d.npz", images=PIXELS.reshape(-1, 4, 4), labels=TWO)
    assert_same(in_order(arrays), in_order(make(DATA / "again", "again")))


def test_gzipped_csv_per_split() -> None:
    for split, rows in (("train", slice(30)), ("test", slice(30, 40))):
        write(f"set_{split}.csv.gz", gzip.compress(csv(np.c_[TWO, PIXELS][rows]).encode()))
    arrays = make()
    np.testing.assert_array_equal(arrays["test_images"], PIXELS[30:].reshape(10, 4, 4))
    assert "set_train.csv.gz: labels from column 1 of 17, without a header" in report()


def test_label_column_is_found_despite_varying_corner() -> None:
    """Without a header, a corner pixel that is not constant correlates with its neighbor."""
    images = np.sort(NOISE.reshape(40, 30)[:, :16] // 20, axis=1)
    write("d.csv", csv(np.c_[images, RNG.permutation(TWO)]))
    make()
    assert "labels from column 17 of 17" in report()


def test_color_csv() -> None:
    images = RNG.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    write("d_train.csv", csv(np.c_[images.reshape(20, 48), TWO[:20]]))
    write("d_test.csv", csv(np.c_[images.reshape(20, 48), TWO[:20]]))
    np.testing.assert_array_equal(make()["train_images"], images)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        pytest.param(TWO + 1, ["1", "2"], id="from-1"),
        pytest.param(np.array([0, 24])[TWO], ["0", "24"], id="gaps"),
        pytest.param(np.array([10, 9])[TWO], ["9", "10"], id="natural-order"),
        pytest.param(np.array(["cat", "dog"])[TWO], ["cat", "dog"], id="texts"),
        pytest.param(np.array([b"cat", b"dog"])[TWO], ["cat", "dog"], id="bytes"),
        pytest.param(TWO.astype(np.int64)[:, None], ["0", "1"], id="int64-column"),
        pytest.param(TWO.astype(np.float32), ["0", "1"], id="whole-floats"),
        pytest.param(TWO.astype(bool), ["0", "1"], id="bool"),
    ],
)
def test_labels_of_any_kind_become_names(labels: np.ndarray, names: list[str]) -> None:
    npz(x_train=NOISE[:30], y_train=labels[:30], x_test=NOISE[30:], y_test=labels[30:])
    arrays = make()
    assert classes() == names
    assert set(arrays["train_labels"]) == {0, 1}


BINARY = (NOISE > 127).astype(np.uint8)


@pytest.mark.parametrize(
    ("images", "expected", "note"),
    [
        pytest.param(np.repeat(NOISE[..., :1], 6, 2).reshape(40, 36), None, "", id="flat"),
        pytest.param(NOISE[..., None], NOISE, "", id="channel"),
        pytest.param(np.asfortranarray(NOISE), NOISE, "", id="fortran"),
        pytest.param(NOISE / 255, NOISE, "float64 from 0 to 1 multiplied by 255", id="unit"),
        pytest.param(NOISE.astype(np.float32), NOISE, "float32 from 0 to 255", id="floats"),
        pytest.param(NOISE.astype(np.int64), NOISE, "int64 from 0 to 255", id="int64"),
        pytest.param(BINARY.astype(bool), BINARY * 255, "bool", id="bool"),
        pytest.param(BINARY, BINARY, "", id="zero-and-one"),
        pytest.param(NOISE.astype(np.uint16) * 257, NOISE, "divided by 257", id="16-bit"),
        pytest.param(np.repeat(NOISE[..., None], 3, 3), NOISE, "stored in color", id="gray-rgb"),
        pytest.param(np.stack([NOISE, 255 - NOISE, NOISE], 3), None, "", id="color"),
    ],
)
def test_images_of_any_kind_become_uint8(
    images: np.ndarray, expected: np.ndarray | None, note: str
) -> None:
    npz(x_train=images[:30], y_train=TWO[:30], x_test=images[30:], y_test=TWO[30:])
    wanted = images.reshape(40, 6, 6) if images.ndim == 2 else images
    wanted = wanted if expected is None else expected
    np.testing.assert_array_equal(make()["train_images"], wanted[:30])
    assert note in report()


def test_narrow_16_bit_range_is_reported() -> None:
    """A 12-bit camera uses 16 of the 256 gray levels."""
    npz(images=NOISE.astype(np.uint16) * 15, labels=TWO)
    make()
    assert "16-bit levels divided by 257; 16 gray levels remain of 0 to 3825" in report()
    npz(images=NOISE.astype(np.uint16) * 257, labels=TWO)
    make()
    assert "remain" not in report()


def test_levels_of_splits_may_differ_slightly() -> None:
    npz(x_train=NOISE[:30] / 255, y_train=TWO[:30], x_test=NOISE[30:] // 2 / 255, y_test=TWO[30:])
    make()


def test_published_validation_split_is_kept() -> None:
    rows = {"train": slice(20), "val": slice(20, 30), "test": slice(30, 40)}
    arrays: dict[str, Any] = {f"{s}_images": NOISE[r] for s, r in rows.items()}
    arrays |= {f"{s}_labels": TWO[r][:, None] for s, r in rows.items()}
    npz(**arrays)
    fetched = make()
    assert read_dataset("mine").images.validation == 10
    np.testing.assert_array_equal(fetched["train_images"], NOISE[:30])


def test_flat_images_take_their_shape_from_size() -> None:
    npz(x_train=NOISE.reshape(40, 30)[:30], y_train=TWO[:30], X_test=NOISE[30:], y_test=TWO[30:])
    np.testing.assert_array_equal(make(size=(6, 5))["test_images"], NOISE[30:])


def test_images_are_resized_to_the_median_size() -> None:
    for row in range(12):
        png(f"{row % 2}/{row}.png", np.full((8 + row, 30), 9 * row, np.uint8))
    arrays = make()
    assert arrays["train_images"].shape[1:] == (13, 30)
    assert {int(level) for image in arrays["train_images"] for level in np.unique(image)} <= {
        9 * row for row in range(12)
    }


def test_report_lists_the_most_common_sizes_and_counts_the_rest() -> None:
    for row in range(24):
        png(f"{row % 2}/{row}.png", NOISE[0].repeat(1 + max(row - 12, 0), axis=0))
    make()
    assert "## Files as found (height x width)\n\n- 13: PNG L, 6 x 5\n- 1: " in report()
    assert "- 2: 2 other formats and sizes\n" in report()


def test_size_and_gray_options_are_applied() -> None:
    folders(RNG.integers(0, 256, (20, 9, 9, 3), dtype=np.uint8), TWO[:20])
    assert make(size=(4, 6), gray=True)["train_images"].shape[1:] == (4, 6)
    assert make(size=(4, 6))["train_images"].shape[1:] == (4, 6, 3)


def test_one_color_image_makes_the_dataset_color() -> None:
    folders()
    png("1/color.png", np.dstack([ONE, ONE, 255 - ONE]))
    arrays = make()
    assert arrays["train_images"].shape[1:] == (6, 5, 3)
    images = np.concatenate([arrays["train_images"], arrays["test_images"]])
    assert (images == images[..., :1]).all(axis=(1, 2, 3)).sum() == 40


def test_transparent_pixels_get_the_background() -> None:
    """The background is that of the opaque images."""
    framed = np.full((20, 6, 5), 40, np.uint8)
    framed[:, 1:-1, 1:-1] = NOISE[:20, 1:-1, 1:-1]
    folders(framed, TWO[:20])
    png("1/clear.png", np.zeros((6, 5, 4), np.uint8))
    arrays = make()
    images = np.concatenate([arrays["train_images"], arrays["test_images"]])
    assert (images == 40).all(axis=(1, 2)).sum() == 1


def test_white_background_if_all_images_transparent() -> None:
    for row in range(12):
        icon = np.zeros((6, 5, 4), np.uint8)
        icon[1:4, 1:3] = [row, 100, 20, 255]
        png(f"{row % 2}/{row}.png", icon)
    assert (make()["train_images"][:, 0] == 255).all()


def test_image_unlike_its_header_is_rejected(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Pillow applies the orientation from an EXIF chunk that follows the pixels of a PNG."""
    folders()
    exif = Image.Exif()
    exif[0x0112] = 6
    png("0/x.png", ONE, exif=exif)
    content = (DATA / "0/x.png").read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4])
    moved = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    write("0/x.png", moved)
    assert "0/x.png: expected 6 x 5 pixels as in its header, found 5 x 6" in fault()
    assert "0/x.png" in capsys.readouterr().err


def test_parallel_decoding_equals_serial_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (400, 6, 5), dtype=np.uint8)
    folders(images, np.arange(400) % 2)
    together = make()
    monkeypatch.setattr(decoding, "_in_parallel", map)
    assert_same(together, make())


def test_equal_arrays_give_equal_files() -> None:
    folders()
    make()
    first = Path("data/own/mine.npz").read_bytes()
    make()
    assert Path("data/own/mine.npz").read_bytes() == first
    with zipfile.ZipFile("data/own/mine.npz") as archive:  # ZIP64 depends on Python's release
        assert {member.extract_version for member in archive.infolist()} == {20}


def test_second_import_keeps_edits_of_the_entry() -> None:
    folders()
    make()
    file = Path("datasets/mine.yaml")
    text = "# Mine\n" + file.read_text().replace("license: not stated", "license: MIT # mine")
    file.write_text(text)
    make()
    assert file.read_text() == text
    folders(255 - NOISE[:4], [7, 7, 7, 7])
    make()
    assert classes() == ["0", "1", "7"]
    assert file.read_text().startswith("# Mine\n")
    assert "license: MIT # mine" in file.read_text()


@pytest.mark.parametrize("content", [b"\xff", b"{", b"title: Mine\n"])
def test_damaged_file_is_reported_and_kept(content: bytes) -> None:
    folders()
    make()
    file = Path("datasets/mine.yaml")
    file.write_bytes(content)
    with pytest.raises(StageError, match=r"^datasets/mine\.yaml"):
        make()
    assert file.read_bytes() == content


def contents() -> dict[Path, bytes]:
    """All that an import writes."""
    paths = [*Path("datasets").rglob("*"), *Path("data").rglob("*"), *Path("reports").rglob("*")]
    return {path: path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("function", ["update_entry", "write_figure"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_failed_import_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, function: str, again: bool
) -> None:
    folders()
    if again:
        make()
        png("1/more.png", 255 - ONE)
    before = contents()

    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr(dataset, function, stop)
    with pytest.raises(type(error)):
        make()
    assert contents() == before


def test_import_changes_nothing_if_report_fails() -> None:
    folders()
    Path("reports").write_text("a file where the folder should be")
    before = contents()
    with pytest.raises(OSError, match="reports"):
        make()
    assert contents() == before


@pytest.mark.parametrize("again", [False, True])
def test_import_changes_nothing_if_dvc_add_fails(again: bool) -> None:
    """The project of these tests is not a DVC repository."""
    folders()
    if again:
        make()
        png("1/more.png", 255 - ONE)
        Path("data/own/mine.npz.dvc").write_text("outs: []")
    before = contents()
    with pytest.raises(StageError, match="`dvc add` failed") as caught:
        dataset.make(DATA, imports.Options("mine"), {}, dataset.track)
    assert len(str(caught.value).splitlines()) == 1
    assert contents() == before


def test_leftovers_of_a_killed_import_are_removed() -> None:
    folders()
    (Path("data/own/.partial-mine.x1")).mkdir(parents=True)
    make()
    assert [path.name for path in Path("data/own").iterdir()] == ["mine.npz"]


def test_report_lists_anomalies() -> None:
    images = NOISE.copy()
    images[:, 1:-1, 1:-1] = 250
    images[:, [0, -1]] //= 8
    images[:, :, [0, -1]] //= 8
    images[7] = 255 - images[7]
    images[8] = 77
    train = np.concatenate([images[:30], images[:2], images[3:4]])
    labels = np.concatenate([TWO[:30], TWO[:2], 1 - TWO[3:4]])
    test = np.concatenate([images[30:], images[4:5]])
    npz(x_train=train, y_train=labels, x_test=test, y_test=np.append(TWO[30:], TWO[4]))
    make()
    for line in (
        "3 exact duplicates within train",
        "2 images are in several splits (leakage: inflates test accuracy): `train 4`, `test 10`",
        "2 identical images have different labels: `train 3`, `train 32`",
        "1 constant image: `train 8`",
        "1 image is dark on light, unlike the rest: `train 7`",
        "2 classes have fewer than 20 test images (0, 1): "
        "with 5 images, the 95% interval of a recall is about ±45 percentage points",
        "| **all** | **33** | **11** |",
    ):
        assert line in report()
    assert Path("reports/data/mine.png").stat().st_size > 1000


def test_report_lists_classes_without_test_images() -> None:
    test = np.repeat([0, 1], [5, 25])
    npz(x_train=NOISE, y_train=np.arange(40) % 3, x_test=255 - NOISE[:30], y_test=test)
    make()
    assert "- no test image of class 2: its recall cannot be measured" in report()
    assert "- 1 class has fewer than 20 test images (0): with 5 images" in report()


def test_any_class_name_is_drawn_and_tabulated() -> None:
    """Names are not parsed as math or Markdown; numbers replace names that no font can draw."""
    names = ["$a_{$", "b|c", "\ua9c1"]  # the last one is Javanese
    npz(images=NOISE[:39], labels=np.array(names * 13))
    make()
    assert r"| b\|c | 10 | 3 |" in report()
    assert Path("reports/data/mine.png").stat().st_size > 1000


def test_report_of_good_data_lists_no_anomalies() -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 6, 5), dtype=np.uint8)
    npz(images=images, labels=np.arange(300) % 2)
    make()
    findings = [line for line in report().splitlines() if line.startswith("- ")]
    assert findings[0] == "- no exact duplicates"
    assert not any("constant" in line or "unlike" in line or "fewer" in line for line in findings)


def test_all_broken_images_are_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders()
    for name in ("0/empty.png", "1/page.jpg"):
        write(name, b"<html>"[: 6 * ("page" in name)])
    write("1/cut.png", (DATA / "1/1.png").read_bytes()[:60])
    assert fault().startswith("3 of 43 images rejected, named above; repair or remove them.")
    printed = capsys.readouterr().err
    for name in ("0/empty.png", "1/page.jpg", "1/cut.png"):
        assert f"rejected: input/{name}: " in printed


def test_import_requires_enough_disk_space(monkeypatch: pytest.MonkeyPatch) -> None:
    folders()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2399))
    assert "need 0.0 GB of disk" in fault()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2400))
    make()


def test_command_line_import(tmp_path: Path) -> None:
    """In a real repository, DVC tracks the file, and a second call changes nothing."""
    (tmp_path / "tools").mkdir()
    clone = copy_files(tmp_path / "clone", clone_env(tmp_path / "tools", "clone"))
    clone.call("git", "init", "-q")
    folders()
    command = [sys.executable, "-m", "tools.dataset", "mine", str(DATA.absolute()), "--flip"]
    printed = clone.call(*command, "--title", "Mine")
    assert "\n    dvc exp run -n mine -S dataset=mine\n" in printed
    assert "reports/data/mine.md: this report\ndatasets/mine.yaml: new:\n+title: Mine" in printed
    assert (clone.path / "data/own/mine.npz.dvc").exists()
    clone.call("git", "add", "-A")
    clone.call("git", "commit", "-qm", "Mine")
    assert clone.call("git", "ls-files", "data") == "data/.gitignore\ndata/own/mine.npz.dvc\n"
    printed = clone.call(*command)
    assert "datasets/mine.yaml: unchanged" in printed
    assert clone.changed() == set()
    printed = clone.call(*command, "--title", "Yours")
    assert "datasets/mine.yaml: changed:\n-title: Mine\n+title: Yours" in printed
    clone.call("git", "restore", ".")
    entry = read_entry(clone.path, "mine")
    assert (entry["title"], entry["flip"]) == ("Mine", True)
    refused = subprocess.run(
        [*command[:3], "mnist", "x"],
        cwd=clone.path,
        env=clone.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert refused.stderr == "dataset: x: no such file or folder\n"


def damaged(name: str, change: Callable[[bytes], bytes]) -> None:
    write(name, change((DATA / name).read_bytes()))


def npz_with(**changes: Any) -> None:  # noqa: ANN401
    good: dict[str, Any] = {
        "x_train": NOISE[:30],
        "y_train": TWO[:30],
        "x_test": NOISE[30:],
        "y_test": TWO[30:],
    }
    npz(**{name: array for name, array in (good | changes).items() if array.size})


def csv_with(old: str, new: str, header: bool = True) -> None:
    text = csv(np.c_[TWO, PIXELS], f"label,{NAMES}" if header else "")
    write("d.csv", text.replace(old, new, 1))


def idx_with(change: Callable[[bytes], bytes], name: str = "train-images") -> None:
    arrays = {"train-images": NOISE, "train-labels": TWO.astype(np.uint8)}
    for key, array in arrays.items():
        content = idx(array)
        write(f"{key}-idx{array.ndim}-ubyte", change(content) if key == name else content)


def zip_with(change: Callable[[bytes], bytes]) -> None:
    png("0/a.png")
    write("d.zip", change(zipped("0/a.png")))


def bomb_png() -> bytes:
    """A PNG that declares 40,000 x 40,000 pixels."""
    content = io.BytesIO()
    Image.fromarray(ONE).save(content, "PNG")
    size = (40_000).to_bytes(4, "big") * 2
    head = b"IHDR" + size + content.getvalue()[24:29]
    crc = zlib.crc32(head).to_bytes(4, "big")
    return content.getvalue()[:12] + head + crc + content.getvalue()[33:]


BOMB_PNG = bomb_png()


NONE = np.zeros(0)
INVALID: list[Any] = [  # one case a line
    # Folders
    ("no files", lambda: None, "expected images, npz, CSV or IDX files, found none"),
    ("only text", lambda: write("a/x.txt", "x"), "expected images, npz, CSV or IDX files"),
    ("only hidden", lambda: write("a/.x.png", "x"), "expected images, npz, CSV or IDX files"),
    ("only empty folders", lambda: (DATA / "a").mkdir(), "expected images"),
    ("no class folders", lambda: png("a.png"), "expected a folder for each class"),
    ("one class", lambda: folders(labels=TWO * 0), "expected 2 to 256 classes, found 1: 0"),
    ("257 classes", lambda: folders(NOISE[np.arange(257) % 40], range(257)), "found 257"),
    ("no train class", lambda: (folders(below="train/"), png("test/7/a.png")), "none of 7"),
    ("empty train class", lambda: (folders(below="train/"), png("val/x/a.png")), "none of x"),
    ("one image a class", lambda: folders(NOISE[:2], [0, 1]), "too few distinct"),
    ("all images identical", lambda: folders(NOISE[[0] * 9], [0, 1, 1] * 3), "too few distinct"),
    ("line feed in a class", lambda: folders(labels=["a\nb", "c"] * 20), "printable class names"),
    # Images
    ("empty", lambda: (folders(), write("0/x.png", "")), "0/x.png: cannot identify"),
    ("web page", lambda: (folders(), write("0/x.png", "<html>")), "0/x.png: cannot identify"),
    ("cut PNG", lambda: (folders(), damaged("0/0.png", lambda b: b[:70])), "0/0.png: "),
    (
        "PNG checksum",
        lambda: (folders(), damaged("0/0.png", lambda b: b[:45] + b"x" + b[46:])),
        "0/0.png: ",
    ),
    (
        "cut JPEG",
        lambda: (png("0/a.jpg", NOISE[0]), png("1/b.jpg"), damaged("0/a.jpg", lambda b: b[:-30])),
        "0/a.jpg: ",
    ),
    (
        "GIF animation",
        lambda: (
            folders(),
            png(
                "0/x.gif",
                Image.fromarray(ONE),
                save_all=True,
                append_images=[Image.fromarray(255 - ONE)],
            ),
        ),
        "an animation",
    ),
    (
        "PNG animation",
        lambda: (
            folders(),
            png(
                "0/x.png",
                Image.fromarray(ONE),
                save_all=True,
                append_images=[Image.fromarray(255 - ONE)],
            ),
        ),
        "an animation",
    ),
    (
        "floats in TIFF",
        lambda: (folders(), png("0/x.tif", ONE.astype(np.float32))),
        "floating-point",
    ),
    (
        "32 bits in TIFF",
        lambda: (folders(), png("0/x.tif", ONE.astype(np.int32) * 70_000)),
        "16 bits",
    ),
    (
        "another format",
        lambda: (folders(), png("0/x.png", Image.fromarray(ONE), format="PPM")),
        "cannot identify",
    ),
    ("bomb", lambda: (folders(), write("0/x.png", BOMB_PNG)), "decompression bomb"),
    (
        "all broken",
        lambda: (write("0/x.png", "x"), write("1/y.png", "y")),
        "2 of 2 images rejected",
    ),
    # npz
    ("npz not a zip", lambda: write("d.npz", "x"), "d.npz: not a valid zip file"),
    ("npz empty", lambda: write("d.npz", ""), "d.npz: not a valid zip file"),
    (
        "npz cut",
        lambda: (npz_with(), damaged("d.npz", lambda b: b[:-30])),
        "d.npz: not a valid zip file",
    ),
    (
        "npz damaged",
        lambda: (npz_with(), damaged("d.npz", lambda b: b[:300] + b"xxxx" + b[304:])),
        "d.npz: not a valid npz file of numbers: ",
    ),
    (
        "npz of objects",
        lambda: npz_with(y_train=np.array([None] * 30)),
        "d.npz: not a valid npz file of numbers: Object arrays",
    ),
    (
        "npz huge shape",
        lambda: (npz_with(), damaged("d.npz", lambda b: b.replace(b"(30, 6, 5)", b"(9**9, 65)"))),
        "d.npz: not a valid npz file of numbers: ",
    ),
    ("npz without labels", lambda: npz_with(y_train=NONE), "train: expected labels for"),
    ("npz without images", lambda: npz_with(x_train=NONE), "expected images and labels of each"),
    ("npz without known names", lambda: npz(a=NOISE, b=TWO), "expected images and labels of each"),
    ("npz more labels", lambda: npz_with(y_train=TWO[:31]), "found 31 labels and 30 images"),
    ("npz fewer labels", lambda: npz_with(y_test=TWO[:9]), "found 9 labels and 10 images"),
    ("npz one-hot labels", lambda: npz_with(y_train=np.eye(2)[TWO[:30]]), r"found shape \(30, 2\)"),
    ("npz scalar labels", lambda: npz_with(y_train=np.array(3)), r"found shape \(\)"),
    (
        "npz fractional labels",
        lambda: npz_with(y_train=TWO[:30] + 0.5),
        "whole numbers as labels, found",
    ),
    (
        "npz NaN labels",
        lambda: npz_with(y_train=TWO[:30] * np.nan),
        "whole numbers as labels, found nan",
    ),
    ("npz complex labels", lambda: npz_with(y_train=TWO[:30] * 1j), "expected a label for each"),
    (
        "npz empty text label",
        lambda: npz_with(y_train=np.array(["a", ""] * 15)),
        "found none for 15",
    ),
    (
        "npz unknown test label",
        lambda: npz_with(y_test=TWO[30:] + 5),
        "training images of each class, found none of 5, 6",
    ),
    (
        "npz two shapes",
        lambda: npz_with(x_test=NOISE[30:, :4]),
        "images of one shape in all splits",
    ),
    (
        "npz two channels",
        lambda: npz_with(x_train=np.zeros((30, 6, 5, 2))),
        r"found shape \(30, 6, 5, 2\)",
    ),
    ("npz five dimensions", lambda: npz_with(x_train=np.zeros((30, 6, 5, 1, 1))), "found shape"),
    (
        "npz not square",
        lambda: npz_with(x_train=NOISE[:30].reshape(30, 30)),
        r"--size\), found shape \(30, 30\)",
    ),
    (
        "npz texts as images",
        lambda: npz_with(x_train=np.full((30, 6, 5), "a")),
        "images: expected numbers",
    ),
    ("npz complex images", lambda: npz_with(x_train=NOISE[:30] * 1j), "images: expected numbers"),
    ("npz NaN images", lambda: npz_with(x_train=NOISE[:30] * np.nan), "images: expected levels"),
    (
        "npz infinite images",
        lambda: npz_with(x_train=NOISE[:30] + np.inf),
        "images: expected levels",
    ),
    ("npz negative images", lambda: npz_with(x_train=NOISE[:30] / 127.5 - 1), "found -1.0 to 255"),
    (
        "npz images too large",
        lambda: npz_with(x_train=NOISE[:30] * 1000.0),
        "images: expected levels",
    ),
    (
        "npz test in other levels",
        lambda: npz_with(x_train=NOISE[:30] / 255),
        "train from 0 to 1 and test from 0 to 255",
    ),
    (
        "npz 8 and 16 bits",
        lambda: npz_with(x_test=NOISE[30:].astype(np.uint16) * 257),
        "train from 0 to 255 and test from 0 to 65535",
    ),
    (
        "npz channels first",
        lambda: npz_with(x_train=np.zeros((30, 3, 6, 5))),
        r"images.transpose\(0, 2, 3, 1\)",
    ),
    (
        "npz train twice",
        lambda: npz(x_train=NOISE, train_images=NOISE, y_train=TWO),
        "duplicate train images",
    ),
    (
        "npz with and without split",
        lambda: npz_with(x=NOISE, y=TWO),
        "expected names with train and test",
    ),
    (
        "npz no images in it",
        lambda: npz_with(x_test=NOISE[:0, :, :1], y_test=NONE, x_train=NONE),
        "images and labels of each",
    ),
    (
        "two npz",
        lambda: (npz("a_train.npz", x=NOISE, y=TWO), npz("b_train.npz", x=NOISE, y=TWO)),
        "found several: a_, b_",
    ),
    # CSV
    ("CSV empty", lambda: write("d.csv", ""), "d.csv: expected a CSV, found: No columns"),
    ("CSV header only", lambda: write("d.csv", f"label,{NAMES}\n"), "d.csv: expected"),
    (
        "CSV web page",
        lambda: write("d.csv", "<html>\n<body>"),
        "d.csv: expected rows of a label and pixels",
    ),
    (
        "CSV semicolons",
        lambda: write("d.csv", csv(np.c_[TWO, PIXELS]).replace(",", ";")),
        "d.csv: expected commas between the cells, found ';'",
    ),
    (
        "CSV tabs",
        lambda: write("d.csv", csv(np.c_[TWO, PIXELS]).replace(",", "\t")),
        r"expected commas between the cells, found '\\t'",
    ),
    (
        "zip in a folder",
        lambda: (png("0/a.png"), write("d.zip", zipped("0/a.png"))),
        "d.zip: nested zip; unpack it first",
    ),
    ("CSV longer row", lambda: csv_with("\n1,", "\n1,1,"), "d.csv: expected a CSV, found"),
    (
        "CSV short header",
        lambda: csv_with("label,p0", "label"),
        "found 16 cells in the first row and 17 below",
    ),
    ("CSV shorter row", lambda: csv_with("\n1,", "\n"), "images: expected levels"),
    (
        "CSV empty cell",
        lambda: csv_with(f"\n0,{PIXELS[0, 0]},", "\n0,,"),
        "images: expected levels",
    ),
    (
        "CSV word",
        lambda: csv_with(f"\n0,{PIXELS[0, 0]},", "\n0,dark,"),
        "column p0: expected numbers, found 'dark'",
    ),
    ("CSV negative", lambda: csv_with(f"\n0,{PIXELS[0, 0]},", "\n0,-7,"), "found -7.0 to"),
    ("CSV inf", lambda: csv_with(f"\n0,{PIXELS[0, 0]},", "\n0,inf,"), "images: expected levels"),
    (
        "CSV two label columns",
        lambda: csv_with("p0", "class"),
        "expected one label column, found label, class",
    ),
    (
        "CSV no label column",
        lambda: write("d.csv", csv(PIXELS + 0.5)),
        "expected labels in the first or last column",
    ),
    ("CSV missing label", lambda: csv_with("\n1,", "\n,"), "whole numbers as labels, found nan"),
    (
        "CSV not square",
        lambda: write("d.csv", csv(np.c_[TWO, PIXELS[:, :15]])),
        r"found shape \(40, 15\)",
    ),
    ("CSV not UTF-8", lambda: write("d.csv", b"\xff\xfe\x00a,b\n"), "d.csv: expected a CSV"),
    (
        "CSV gzip cut",
        lambda: write("d.csv.gz", gzip.compress(csv(np.c_[TWO, PIXELS]).encode())[:-20]),
        "d.csv.gz: expected a CSV",
    ),
    # IDX
    (
        "IDX labels missing",
        lambda: write("train-images-idx3-ubyte", idx(NOISE)),
        "expected labels for",
    ),
    (
        "IDX images missing",
        lambda: write("train-labels-idx1-ubyte", idx(TWO.astype(np.uint8))),
        "images and labels of each",
    ),
    ("IDX magic", lambda: idx_with(lambda b: b"\1" + b[1:]), "expected IDX of unsigned bytes"),
    (
        "IDX floats",
        lambda: idx_with(lambda b: b[:2] + b"\x0d" + b[3:]),
        "expected IDX of unsigned bytes",
    ),
    (
        "IDX dimensions",
        lambda: idx_with(lambda b: b[:3] + b"\2" + b[4:]),
        "expected IDX of unsigned bytes",
    ),
    ("IDX cut", lambda: idx_with(lambda b: b[:-1]), "expected 1,216 bytes"),
    ("IDX longer", lambda: idx_with(lambda b: b + b"\0"), "at most 1,216 bytes"),
    ("IDX empty", lambda: idx_with(lambda b: b""), "expected IDX of unsigned bytes"),
    ("IDX gzip cut", lambda: idx_with(lambda b: gzip.compress(b)[:-9]), "not a valid archive"),
    ("IDX gzip damaged", lambda: idx_with(lambda b: b"\x1f\x8b" + b), "expected IDX, found"),
    (
        "IDX fewer labels",
        lambda: idx_with(lambda _: idx(TWO[:39].astype(np.uint8)), "train-labels"),
        "found 39 labels and 40 images",
    ),
]


@pytest.mark.parametrize(
    ("arrange", "expected"), [pytest.param(a, e, id=name) for name, a, e in INVALID]
)
def test_invalid_input_is_rejected(arrange: Callable[[], object], expected: str) -> None:
    arrange()
    assert re.search(expected, found := fault()), found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda b: b[:-30], "expected images, npz", id="cut"),
        pytest.param(lambda b: b[:60] + b"x" + b[61:], "d.zip: not a valid zip file", id="damaged"),
    ],
)
def test_damaged_zip_is_rejected(change: Callable[[bytes], bytes], expected: str) -> None:
    zip_with(change)
    assert re.search(expected, found := fault(DATA / "d.zip")), found


def test_nested_zip_is_rejected() -> None:
    png("0/a.png")
    write("inner.zip", zipped("0/a.png"))
    write("outer.zip", zipped("inner.zip"))
    expected = "inner.zip: nested zip; unpack it first"
    assert expected in fault(DATA / "outer.zip")


def test_zip_writes_nothing_outside_its_folder(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for row, image in enumerate(NOISE[:20]):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            archive.writestr(f"../../../{row % 2}/{row}.png", file.getvalue())
    write("d.zip", content.getvalue())
    make(DATA / "d.zip")
    assert not (tmp_path / "0").exists()


def test_zip_bomb_is_rejected() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0/a.png", bytes(200_000_000))
    write("d.zip", content.getvalue())
    assert "a decompression bomb" in fault(DATA / "d.zip")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "1st"}, "NAME: expected a letter"),
        ({"name": "a/b"}, "NAME: expected a letter"),
        ({"name": "null"}, "NAME: expected a letter"),
        ({"name": "tiny"}, "datasets/tiny.yaml was not created by this tool"),
        ({"size": (0, 5)}, "--size: expected pixels"),
        ({"size": (5, 5000)}, "--size: expected pixels"),
        ({"test": 0.0}, "--test: expected a fraction"),
        ({"test": 1.0}, "--test: expected a fraction"),
        ({"test": float("nan")}, "--test: expected a fraction"),
        ({"seed": -1}, "--seed: expected a number"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any], expected: str) -> None:
    folders()
    assert expected in fault(**options)


def test_single_image_is_rejected() -> None:
    png("a.png")
    assert "expected a folder with a folder for each class" in fault(DATA / "a.png")
