"""Scales pixels and holds out a validation split."""

from stages.lib.stage import StageError, run  # isort: skip  # first, see there

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from stages.lib.files import (
    check_arrays,
    read_array,
    read_chunks,
    read_json,
    replacing,
    write_chunks,
    write_json,
)
from stages.lib.params import read_params

RAW = Path("data/raw")
NORMALIZED = Path("data/normalized")


def held_out(count: int, validation: int, seed: int) -> np.ndarray:
    """Chooses the images of the validation split.

    Args:
        count: Number of training images as published.
        validation: How many to hold out.
        seed: Seed of the choice.

    Returns:
        True for each image held out, shape (count,), bool.
    """
    mask = np.zeros(count, bool)
    mask[np.random.default_rng(seed).permutation(count)[:validation]] = True
    return mask


def mean_and_deviation(chunks: Iterable[np.ndarray]) -> tuple[float, float]:
    """Mean and standard deviation over all pixels.

    Args:
        chunks: Gray levels, any shapes, uint8, some images at a time.

    Returns:
        Both in gray levels; exact in any order, because they are computed from how often each level
        occurs.
    """
    counts = sum(
        (np.bincount(chunk.ravel(), minlength=256) for chunk in chunks), np.zeros(256, np.int64)
    )
    levels = np.arange(256)
    mean = float(counts @ levels / counts.sum())
    return mean, float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum()))


def scale(images: np.ndarray, offset: float, divisor: float) -> np.ndarray:
    """Maps gray levels to intensities.

    Args:
        images: Gray levels, shape (n, height, width), uint8.
        offset: The level that becomes 0.
        divisor: How many levels make 1.

    Returns:
        (images - offset) / divisor, the same shape, float32.
    """
    return (images.astype(np.float32) - np.float32(offset)) / np.float32(divisor)


def kept_chunks(path: Path, kept: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the rows of a file for which `kept`, shape (n,), bool, is true, some at a time."""
    start = 0
    for chunk in read_chunks(path):
        yield chunk[kept[start : start + len(chunk)]]
        start += len(chunk)


def fingerprints(chunks: Iterable[np.ndarray]) -> np.ndarray:
    """A number for each image, equal for equal images and for no others in practice.

    Args:
        chunks: Gray levels, shapes (any, height, width), uint8.

    Returns:
        Eight bytes of each image's BLAKE2b, shape (n,), uint64: two of a million images share one
        by chance in one of thirty million datasets.
    """
    digests = (
        hashlib.blake2b(image.tobytes(), digest_size=8).digest()
        for chunk in chunks
        for image in chunk
    )
    return np.fromiter((int.from_bytes(digest) for digest in digests), np.uint64)


def duplicates(splits: Mapping[str, tuple[str, np.ndarray]]) -> dict[str, int]:
    """Counts the images of one split that another one has too.

    Args:
        splits: For each split, the published one that its images come from, and which of them do,
            as for `write_split`.

    Returns:
        For each pair, such as "train, test", the images of the second that are in the first.
    """
    prints = {
        split: fingerprints(kept_chunks(RAW / f"{published}_images.npy", kept))
        for split, (published, kept) in splits.items()
    }
    pairs = combinations(prints, 2)
    return {
        f"{one}, {other}": int(np.isin(prints[other], prints[one]).sum()) for one, other in pairs
    }


def offset_and_divisor(method: str, chunks: Iterable[np.ndarray]) -> tuple[float, float]:
    """Chooses what `scale` does, from the training split alone.

    Args:
        method: As in `normalize.method` of params.yaml.
        chunks: The training split's gray levels, as for `mean_and_deviation`; looked at by
            `standardize` only.

    Returns:
        Both in gray levels.

    Raises:
        StageError: All levels are the same.
    """
    if method == "min_max":
        return 0.0, 255.0
    mean, deviation = mean_and_deviation(chunks)
    if not deviation:
        raise StageError(
            f"{RAW}/train_images.npy: expected different gray levels to standardize, found only {mean}"
        )
    return mean, deviation


def write_split(
    folder: Path, split: str, published: str, kept: np.ndarray, offset: float, divisor: float
) -> dict[str, object]:
    """Writes the images and labels of one split.

    Args:
        folder: Where to.
        split: What the split is called from now on.
        published: The published split that its images come from.
        kept: True for each of them that belongs to it, shape (n,), bool.
        offset: As for `scale`.
        divisor: As for `scale`.

    Returns:
        What each array is known by, as from `write_chunks`.
    """
    images, labels = (RAW / f"{published}_{kind}.npy" for kind in ("images", "labels"))
    count, image = int(kept.sum()), read_array(images).shape[1:]
    scaled = (scale(chunk, offset, divisor) for chunk in kept_chunks(images, kept))
    names = f"{split}_images", f"{split}_labels"
    return {
        names[0]: write_chunks(folder / f"{names[0]}.npy", (count, *image), np.float32, scaled),
        names[1]: write_chunks(
            folder / f"{names[1]}.npy", (count,), np.uint8, kept_chunks(labels, kept)
        ),
    }


def main() -> None:
    params = read_params().normalize
    check_arrays(RAW / "dataset.json", "train_images", "train_labels", "test_images", "test_labels")
    count, test_count = (
        len(read_array(RAW / f"{split}_labels.npy")) for split in ("train", "test")
    )
    if params.validation >= count:
        raise StageError(
            f"params.yaml: normalize.validation: expected fewer than {count:,}, found {params.validation}"
        )
    dataset = read_json(RAW / "dataset.json")
    held = held_out(count, params.validation, params.seed)
    splits = {
        "train": ("train", ~held),
        "validation": ("train", held),
        "test": ("test", np.ones(test_count, bool)),
    }
    scaling = offset_and_divisor(params.method, kept_chunks(RAW / "train_images.npy", ~held))
    twice = duplicates(splits)
    with replacing(NORMALIZED) as folder:
        folder.mkdir()
        written: dict[str, object] = {}
        for split, (published, kept) in splits.items():
            written |= write_split(folder, split, published, kept, *scaling)
        about = {"method": params.method, "offset": scaling[0], "divisor": scaling[1]}
        about |= {"classes": len(dataset["classes"]), "flip": dataset["flip"]}
        write_json(folder / "scaling.json", {**about, "duplicates": twice, "arrays": written})
    print(
        f"{count - params.validation:,} images to train on, {params.validation:,} to validate, {test_count:,} to test; "
        f"in two splits: {sum(twice.values()):,}"
    )


if __name__ == "__main__":
    run(main)
