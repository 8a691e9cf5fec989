"""Fetch a dataset's images and labels as published."""

from pathlib import Path

import numpy as np

from stages.lib.files import replacing, write_arrays, write_json
from stages.lib.params import read_params
from stages.lib.sources.catalog import DATASETS, read_dataset
from stages.lib.sources.fetching import fetch_arrays
from stages.lib.stage import run

RAW = Path("data/raw")


def background(images: np.ndarray) -> int:
    """Estimate the background level of images as the median of their border pixels.

    Args:
        images: Shape (n, height, width) or (n, height, width, 3), uint8.

    Returns:
        A level in [0, 255], over all channels.
    """
    borders = images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]
    counts = sum((np.bincount(b.ravel(), minlength=256) for b in borders), np.zeros(256, int))
    return int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))


def main() -> None:
    params = read_params()
    dataset = read_dataset(params.dataset)
    with replacing(RAW) as folder:
        folder.mkdir()
        arrays = fetch_arrays(dataset, params.fetch.source, folder)
        written = write_arrays(folder, arrays)
        images = arrays["train_images"]
        about = {
            "name": params.dataset,
            "title": dataset.title,
            "classes": dataset.classes,
            "flip": dataset.flip,
            "levels": [int(images.min()), int(images.max())],
            "background": background(images),
            "validation": dataset.images.validation or 0,  # the last training images
            "arrays": written,
        }
        write_json(folder / "dataset.json", about)
    count, test_count = (len(arrays[f"{split}_images"]) for split in ("train", "test"))
    print(
        f"{count:,} training and {test_count:,} test images, "
        f"checksums match {DATASETS}/{params.dataset}.yaml"
    )


if __name__ == "__main__":
    run(main)
