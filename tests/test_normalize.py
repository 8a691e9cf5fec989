"""The stage normalize."""

import json
from pathlib import Path

import numpy as np
import pytest

from stages import fetch, normalize
from stages.lib.files import read_json, write_arrays, write_json
from stages.lib.stage import StageError
from tests.helpers import Edit, tiny_arrays


def splits(project: Path) -> dict[str, np.ndarray]:
    """Return the arrays that the stage wrote, by name."""
    return {path.stem: np.load(path) for path in (project / "data/normalized").glob("*.npy")}


def write_numbered(project: Path, count: int) -> None:
    """Raw data: images of 2x2 pixels that encode their index, labels equal to it modulo 7."""

    def arrays(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        index = np.arange(start, stop)
        pixels = np.stack([index % 256, index // 256, index * 0, index * 0 + 255], axis=1)
        return pixels.reshape(-1, 2, 2).astype(np.uint8), (index % 7).astype(np.uint8)

    raw = project / "data/raw"
    raw.mkdir(parents=True)
    written: dict[str, object] = {}
    for split, (images, labels) in {
        "train": arrays(0, count),
        "test": arrays(count, count + 5000),
    }.items():
        written |= write_arrays(raw, {f"{split}_images": images, f"{split}_labels": labels})
    write_json(raw / "dataset.json", {"arrays": written})


def numbers(images: np.ndarray) -> np.ndarray:
    """The indexes that `write_numbered` put into the images, scaled by 255."""
    pixels = np.rint(images * 255).astype(int)
    numbered: np.ndarray = pixels[:, 0, 0] + 256 * pixels[:, 0, 1]
    return numbered


def training_levels() -> np.ndarray:
    """Return the published images that remain for training."""
    arrays = tiny_arrays()
    held = normalize.choose_held_out(arrays["train_labels"], 18, 0)
    return np.delete(arrays["train_images"], held, axis=0)


def test_min_max_maps_training_range_to_0_and_1(project: Path) -> None:
    fetch.main()
    normalize.main()
    found, published = splits(project), tiny_arrays()
    low, high = int(training_levels().min()), int(training_levels().max())
    expected = (published["test_images"] - float(low)) / (high - low)
    np.testing.assert_allclose(found["test_images"], expected, rtol=1e-6, atol=1e-7)
    assert (found["train_images"].min(), found["train_images"].max()) == (0, 1)
    assert all(
        found[f"{split}_images"].dtype == np.float32 for split in ("train", "validation", "test")
    )
    scaling = json.loads((project / "data/normalized/scaling.json").read_text())
    assert {*scaling.pop("arrays")} == {*found}
    assert set(scaling.pop("duplicates").values()) == {0}
    assert scaling == {
        "method": "min_max",
        "offset": low,
        "divisor": high - low,
    }


def test_standardize_is_fitted_on_the_training_split(project: Path, edit: Edit) -> None:
    """Only that split has mean 0 and standard deviation 1."""
    edit("normalize.method", "standardize")
    fetch.main()
    normalize.main()
    found = splits(project)
    assert found["train_images"].dtype == np.float32
    assert found["train_images"].mean(dtype=np.float64) == pytest.approx(0, abs=1e-6)
    assert found["train_images"].std(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    for split in ("validation", "test"):
        assert abs(found[f"{split}_images"].mean()) > 1e-4
        assert found[f"{split}_images"].std() != pytest.approx(1, abs=1e-4)


def test_standardize_applies_training_statistics(project: Path, edit: Edit) -> None:
    edit("normalize.method", "standardize")
    fetch.main()
    normalize.main()
    levels = training_levels().astype(np.float64)
    scaling = json.loads((project / "data/normalized/scaling.json").read_text())
    assert scaling["offset"] == pytest.approx(levels.mean(), rel=1e-12)
    assert scaling["divisor"] == pytest.approx(levels.std(), rel=1e-12)
    np.testing.assert_allclose(
        splits(project)["test_images"],
        (tiny_arrays()["test_images"] - levels.mean()) / levels.std(),
        rtol=1e-5,
        atol=1e-6,
    )


def test_levels_0_to_16_are_scaled_to_0_and_1() -> None:
    images = np.array([[0, 4], [16, 8]], np.uint8)
    assert normalize.offset_and_divisor("min_max", [images[:1], images[:0], images[1:]]) == (0, 16)


@pytest.mark.parametrize("method", ["min_max", "standardize"])
def test_images_of_one_level_are_rejected(method: str) -> None:
    with pytest.raises(StageError, match=r"every pixel has level 7, which cannot be scaled"):
        normalize.offset_and_divisor(method, [np.full((3, 2, 2), 7, np.uint8)])


def test_mean_and_deviation_are_independent_of_chunks() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 3)).astype(np.uint8)
    whole = normalize.mean_and_deviation([images])
    assert whole == pytest.approx((images.mean(), images.std()), rel=1e-12)
    assert (
        normalize.mean_and_deviation(images[start : start + 7] for start in range(0, 50, 7))
        == whole
    )
    assert normalize.mean_and_deviation(reversed(images)) == whole


LABELS = np.repeat(np.arange(4, dtype=np.uint8), [40, 7, 2, 1])


def test_split_is_stratified_and_deterministic() -> None:
    held = normalize.choose_held_out(LABELS, 10, 3)
    assert held.dtype == np.int64
    assert (np.diff(held) > 0).all()
    np.testing.assert_array_equal(np.bincount(LABELS[held], minlength=4), [8, 2, 0, 0])
    np.testing.assert_array_equal(held, normalize.choose_held_out(LABELS, 10, 3))


def test_seed_selects_images_within_a_class() -> None:
    drawn = [set(normalize.choose_held_out(LABELS, 10, seed).tolist()) for seed in range(300)]
    assert drawn[0] != drawn[1]
    counts = np.bincount([index for held in drawn for index in held], minlength=50)
    assert counts[:40] / 300 == pytest.approx(8 / 40, abs=0.1)
    assert counts[40:47] / 300 == pytest.approx(2 / 7, abs=0.1)


@pytest.mark.parametrize("validation", range(50))
def test_quotas_leave_training_images_of_every_class(validation: int) -> None:
    """Quotas sum to the size of the validation split."""
    counts = np.bincount(LABELS)
    shares = normalize.quotas(counts, validation)
    assert shares.sum() == validation
    assert (shares >= 0).all()
    assert (shares <= counts).all()
    if validation <= 46:
        assert (shares < counts).all()
    if validation <= 23:  # no class is near its end: off by less than one image
        assert (np.abs(shares - validation * counts / 50) < 1).all()


def test_class_without_images_has_quota_0() -> None:
    assert normalize.quotas(np.array([10, 0, 10]), 4).tolist() == [2, 0, 2]


def test_every_image_is_in_one_split_with_its_label(project: Path, edit: Edit) -> None:
    edit("normalize.validation", 1_234)
    write_numbered(project, 9_000)  # more than two chunks
    normalize.main()
    found = splits(project)
    index = {split: numbers(found[f"{split}_images"]) for split in ("train", "validation", "test")}
    assert [len(numbers) for numbers in index.values()] == [7_766, 1_234, 5_000]
    assert sorted([*index["train"], *index["validation"]]) == [*range(9_000)]
    np.testing.assert_array_equal(index["test"], np.arange(9_000, 14_000))
    for split, numbered in index.items():
        assert found[f"{split}_labels"].dtype == np.uint8
        np.testing.assert_array_equal(found[f"{split}_labels"], numbered % 7)
    np.testing.assert_array_equal(index["validation"], found["held_out"])
    assert np.ptp(np.bincount(found["validation_labels"])) <= 1


def test_seed_selects_the_held_out_images(project: Path, edit: Edit) -> None:
    fetch.main()
    normalize.main()
    before = splits(project)["validation_images"]
    edit("normalize.seed", 1)
    normalize.main()
    after = splits(project)["validation_images"]
    assert before.shape == after.shape == (18, 6, 5)
    assert (before != after).any()


def test_validation_split_may_be_empty(project: Path, edit: Edit) -> None:
    """All images then remain for training."""
    edit("normalize.validation", 0)
    fetch.main()
    normalize.main()
    found = splits(project)
    assert found["validation_images"].shape == (0, 6, 5)
    assert found["validation_labels"].shape == (0,)
    np.testing.assert_array_equal(found["train_labels"], tiny_arrays()["train_labels"])


def test_all_but_one_image_may_be_held_out(project: Path, edit: Edit) -> None:
    edit("normalize.validation", 89)
    fetch.main()
    normalize.main()
    assert len(splits(project)["train_images"]) == 1


def test_holding_out_every_image_is_rejected(project: Path, edit: Edit) -> None:
    """Nothing is written."""
    edit("normalize.validation", 90)
    fetch.main()
    with pytest.raises(
        StageError,
        match=r"^params.yaml: normalize.validation: expected fewer than 90 images, found 90",
    ):
        normalize.main()
    assert [path.name for path in (project / "data").iterdir()] == ["raw"]


@pytest.mark.parametrize(
    ("asked", "published", "size"),
    [(0, 0, 0), (18, 7, 18), (0.1, 7, 9), (0.001, 0, 0), ("published", 7, 7)],
)
def test_validation_may_be_count_share_or_published(
    asked: float | str, published: int, size: int
) -> None:
    assert normalize.validation_size(asked, 90, published) == size


@pytest.mark.parametrize(
    ("asked", "published", "reason"),
    [
        (90, 0, "expected fewer than 90 images, found 90"),
        (0.999, 0, "expected fewer than 90 images, found 90"),
        ("published", 0, "the dataset has no published validation split; set a number"),
    ],
)
def test_invalid_validation_split_is_rejected(
    asked: float | str, published: int, reason: str
) -> None:
    with pytest.raises(StageError, match=rf"^params.yaml: normalize.validation: {reason}"):
        normalize.validation_size(asked, 90, published)


def test_published_validation_split_is_held_out(project: Path, edit: Edit) -> None:
    """It is the end of the published training images."""
    edit("normalize.validation", "published")
    fetch.main()
    record = Path("data/raw/dataset.json")
    write_json(record, read_json(record) | {"validation": 20})
    normalize.main()
    found = splits(project)
    np.testing.assert_array_equal(found["held_out"], np.arange(70, 90))
    labels = tiny_arrays()["train_labels"]
    np.testing.assert_array_equal(found["validation_labels"], labels[70:])
    np.testing.assert_array_equal(found["train_labels"], labels[:70])


def test_second_run_writes_the_same_bytes(project: Path) -> None:
    fetch.main()
    normalize.main()
    before = {path.name: path.read_bytes() for path in (project / "data/normalized").iterdir()}
    normalize.main()
    assert {
        path.name: path.read_bytes() for path in (project / "data/normalized").iterdir()
    } == before
    assert len(before) == 8


@pytest.mark.parametrize("name", ["train_images", "train_labels", "test_images", "test_labels"])
def test_modified_raw_arrays_are_rejected(project: Path, name: str) -> None:
    """Nothing is written."""
    fetch.main()
    np.save(project / f"data/raw/{name}.npy", 1 - tiny_arrays()[name])
    with pytest.raises(
        StageError, match=rf"^data/raw/{name}.npy: expected .* as in data/raw/dataset.json"
    ):
        normalize.main()
    assert [path.name for path in (project / "data").iterdir()] == ["raw"]


def test_duplicates_across_splits_are_counted(project: Path) -> None:
    """Labels do not matter."""
    arrays = tiny_arrays()
    first, second, *_ = held = normalize.choose_held_out(arrays["train_labels"], 18, 0)
    kept = np.setdiff1d(np.arange(90), held)[0]
    arrays["train_images"][first] = arrays["train_images"][kept]
    arrays["test_images"][:3] = arrays["train_images"][kept]
    arrays["test_images"][3:5] = arrays["train_images"][second]
    fetch.main()
    written = write_arrays(Path("data/raw"), arrays)
    dataset = read_json(Path("data/raw/dataset.json"))
    write_json(Path("data/raw/dataset.json"), dataset | {"arrays": written})
    normalize.main()
    duplicates = read_json(Path("data/normalized/scaling.json"))["duplicates"]
    assert duplicates == {"train, validation": 1, "train, test": 3, "validation, test": 5}


def test_no_duplicates_are_reported_if_all_differ(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch.main()
    normalize.main()
    assert set(read_json(Path("data/normalized/scaling.json"))["duplicates"].values()) == {0}
    assert "duplicates across splits: 0" in capsys.readouterr().out


def test_fingerprints_identify_equal_images() -> None:
    """They do not depend on the chunks."""
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 2)).astype(np.uint8)
    images[30] = images[4]
    found = normalize.fingerprints([images[:7], images[7:]])
    assert found.dtype == np.uint64
    assert found[30] == found[4]
    assert len({*found.tolist()}) == 49
