"""Scale pixels and hold out a validation split."""

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
    write_arrays,
    write_chunks,
    write_json,
)
from stages.lib.params import read_params
from stages.lib.stage import StageError, run

RAW = Path("data/raw")
NORMALIZED = Path("data/normalized")


def quotas(counts: np.ndarray, validation: int) -> np.ndarray:
    """Apportion the validation split among the classes by the largest remainder method.

    Args:
        counts: Published training images of each class, shape (classes,), int64.
        validation: Size of the validation split, less than the sum of the counts.

    Returns:
        Number of images of each class to hold out, shape (classes,), int64; their sum is
        `validation`. Each class keeps at least one training image unless there are too few images.
    """
    kept = np.minimum(counts, 1)
    if validation > counts.sum() - kept.sum():
        kept[:] = 0
    total = int(counts.sum())
    shares: np.ndarray = np.minimum(validation * counts // total, counts - kept)
    while missing := validation - int(shares.sum()):
        # Integer arithmetic compares remainders exactly; ties go to the first classes.
        remainders = np.where(
            shares < counts - kept, validation * counts - shares * total, -(2**62)
        )
        order = np.argsort(-remainders, kind="stable")[:missing]
        shares[order] += shares[order] < (counts - kept)[order]
    return shares


def validation_size(requested: float | str, count: int, published: int) -> int:
    """Determine the size of the validation split.

    Args:
        requested: `normalize.validation` of params.yaml: a number of images, a share of them below
            1, or "published" for the validation split of the dataset.
        count: Number of published training images, including a published validation split.
        published: Size of the published validation split, 0 if there is none.

    Returns:
        Number of training images to hold out.

    Raises:
        StageError: The dataset has no published validation split, or no training image would be
            left.
    """
    if isinstance(requested, str):
        size = published
        if not published:
            raise StageError(
                "params.yaml: normalize.validation: the dataset has no published validation split; "
                "set a number of images, or a fraction such as 0.1"
            )
    else:
        size = round(requested * count) if 0 < requested < 1 else int(requested)
    if size >= count:
        raise StageError(
            f"params.yaml: normalize.validation: expected fewer than {count:,} images, "
            f"found {size:,}"
        )
    return size


def choose_held_out(labels: np.ndarray, validation: int, seed: int) -> np.ndarray:
    """Choose the training images to hold out for validation, stratified by class.

    Args:
        labels: Labels of the published training images, shape (n,), uint8.
        validation: Number of images to hold out, less than n.
        seed: Random seed.

    Returns:
        Indices of the held-out images, ascending, shape (validation,), int64.
    """
    rng = np.random.default_rng(seed)
    shares = quotas(np.bincount(labels), validation)
    chosen = [
        rng.choice(np.flatnonzero(labels == label), share, replace=False)
        for label, share in enumerate(shares)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def mean_and_deviation(chunks: Iterable[np.ndarray]) -> tuple[float, float]:
    """Compute the mean and standard deviation over all pixels.

    Args:
        chunks: Batches of images, gray levels, any shapes, uint8.

    Returns:
        Mean and standard deviation in gray levels. They are computed from a histogram, so the
        order of the images does not matter.
    """
    counts = sum((np.bincount(c.ravel(), minlength=256) for c in chunks), np.zeros(256, np.int64))
    levels = np.arange(256)
    mean = float(counts @ levels / counts.sum())
    return mean, float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum()))


def scale(images: np.ndarray, offset: float, divisor: float) -> np.ndarray:
    """Scale gray levels to float intensities.

    Args:
        images: Gray levels, shape (n, ...), uint8.
        offset: Gray level that maps to 0.
        divisor: Number of gray levels per unit of intensity.

    Returns:
        (images - offset) / divisor, the same shape, float32.
    """
    return (images.astype(np.float32) - np.float32(offset)) / np.float32(divisor)


def kept_chunks(path: Path, kept: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of a file that the mask `kept`, shape (n,), bool, selects, in chunks."""
    start = 0
    for chunk in read_chunks(path):
        yield chunk[kept[start : start + len(chunk)]]
        start += len(chunk)


def fingerprints(chunks: Iterable[np.ndarray]) -> np.ndarray:
    """Hash each image.

    Args:
        chunks: Gray levels, shapes (any, ...), uint8.

    Returns:
        The 64-bit BLAKE2b hash of each image, shape (n,), uint64. The probability of any collision
        among a million distinct images is about 3e-8.
    """
    digests = (
        hashlib.blake2b(image.tobytes(), digest_size=8).digest()
        for chunk in chunks
        for image in chunk
    )
    return np.fromiter((int.from_bytes(digest) for digest in digests), np.uint64)


def duplicates(splits: Mapping[str, tuple[str, np.ndarray]]) -> dict[str, int]:
    """Count the images that two splits have in common (leakage).

    Args:
        splits: The published split and the mask of each split, as for `write_split`.

    Returns:
        For each pair, such as "train, test", the number of images of the second split that also
        occur in the first.
    """
    prints = {
        split: fingerprints(kept_chunks(RAW / f"{published}_images.npy", kept))
        for split, (published, kept) in splits.items()
    }
    pairs = combinations(prints, 2)
    return {f"{a}, {b}": int(np.isin(prints[b], prints[a]).sum()) for a, b in pairs}


def offset_and_divisor(method: str, chunks: Iterable[np.ndarray]) -> tuple[float, float]:
    """Fit the scaling on the training split.

    Args:
        method: As in `normalize.method` of params.yaml.
        chunks: Images of the training split, as for `mean_and_deviation`.

    Returns:
        The arguments of `scale`, in gray levels.

    Raises:
        StageError: All pixels have the same gray level.
    """
    if method == "min_max":
        ends = np.array([(c.min(), c.max()) for c in chunks if c.size], int)
        offset, divisor = float(ends[:, 0].min()), float(ends[:, 1].max() - ends[:, 0].min())
    else:
        offset, divisor = mean_and_deviation(chunks)
    if not divisor:
        raise StageError(
            f"{RAW}/train_images.npy: every pixel has level {offset:.0f}, which cannot be scaled; "
            "check the images"
        )
    return offset, divisor


def write_split(
    folder: Path, split: str, published: str, kept: np.ndarray, offset: float, divisor: float
) -> dict[str, object]:
    """Write the images and labels of one split.

    Args:
        folder: The output folder.
        split: Name of the split.
        published: The published split that contains its images.
        kept: Mask of the published images that belong to the split, shape (n,), bool.
        offset: As for `scale`.
        divisor: As for `scale`.

    Returns:
        The record of each array, as returned by `write_chunks`.
    """
    images, labels = (RAW / f"{published}_{kind}.npy" for kind in ("images", "labels"))
    count, image = int(kept.sum()), read_array(images).shape[1:]
    scaled = (scale(chunk, offset, divisor) for chunk in kept_chunks(images, kept))
    names = f"{split}_images", f"{split}_labels"
    targets = [folder / f"{name}.npy" for name in names]
    return {
        names[0]: write_chunks(targets[0], (count, *image), np.float32, scaled),
        names[1]: write_chunks(targets[1], (count,), np.uint8, kept_chunks(labels, kept)),
    }


def main() -> None:
    params = read_params().normalize
    record = RAW / "dataset.json"
    check_arrays(record, "train_images", "train_labels", "test_images", "test_labels")
    labels, test_labels = (np.load(RAW / f"{split}_labels.npy") for split in ("train", "test"))
    published = read_json(record).get("validation", 0)
    size = validation_size(params.validation, len(labels), published)
    if params.validation == "published":  # fetch puts these images last
        chosen = np.arange(len(labels) - size, len(labels))
    else:
        chosen = choose_held_out(labels, size, params.seed)
    held = np.zeros(len(labels), bool)
    held[chosen] = True
    every = np.ones(len(test_labels), bool)
    splits = {"train": ("train", ~held), "validation": ("train", held), "test": ("test", every)}
    scaling = offset_and_divisor(params.method, kept_chunks(RAW / "train_images.npy", ~held))
    shared = duplicates(splits)
    with replacing(NORMALIZED) as folder:
        folder.mkdir()
        written = write_arrays(folder, {"held_out": chosen})
        for split, (published, kept) in splits.items():
            written |= write_split(folder, split, published, kept, *scaling)
        about = {"method": params.method, "offset": scaling[0], "divisor": scaling[1]}
        write_json(folder / "scaling.json", {**about, "duplicates": shared, "arrays": written})
    counts = f"{len(labels) - size:,} training, {size:,} validation and {len(every):,} test images"
    print(f"{counts}; duplicates across splits: {sum(shared.values()):,}")


if __name__ == "__main__":
    run(main)
