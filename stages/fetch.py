"""Fetches a dataset's images and labels as they were published."""

from stages.lib.stage import run  # isort: skip  # first, see there

from pathlib import Path

from stages.lib.files import replacing, write_arrays, write_json
from stages.lib.params import read_params
from stages.lib.sources.catalog import read_dataset
from stages.lib.sources.fetching import fetch_arrays

DATASETS = Path("datasets.yaml")
RAW = Path("data/raw")


def main() -> None:
    params = read_params()
    dataset = read_dataset(DATASETS, params.dataset)
    with replacing(RAW) as folder:
        folder.mkdir()
        arrays = fetch_arrays(dataset, params.fetch.source, folder)
        written = write_arrays(folder, arrays)
        about = {
            "name": params.dataset,
            "title": dataset.title,
            "classes": dataset.classes,
            "flip": dataset.flip,
        }
        write_json(folder / "dataset.json", {**about, "arrays": written})
    print(
        f"{len(arrays['train_images']):,} training and {len(arrays['test_images']):,} test images, as in {DATASETS}"
    )


if __name__ == "__main__":
    run(main)
