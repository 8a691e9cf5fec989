"""Train the model."""

import time
from pathlib import Path

from stages.lib.files import check_arrays, read_json, replacing
from stages.lib.models.kinds import KINDS
from stages.lib.params import read_params
from stages.lib.stage import run

RAW = Path("data/raw")
NORMALIZED = Path("data/normalized")
MODEL = Path("data/model.onnx")
HISTORY = Path("data/history.csv")


def main() -> None:
    params = read_params()
    written = read_json(NORMALIZED / "scaling.json")["arrays"]
    # Without a validation split (the tutorial's protocol), learning curves use the test split.
    held_out = "validation" if written["validation_labels"]["shape"][0] else "test"
    names = (f"{split}_{kind}" for split in ("train", held_out) for kind in ("images", "labels"))
    check_arrays(NORMALIZED / "scaling.json", *names)
    start = time.perf_counter()
    train, dataset = KINDS[params.model.kind], read_json(RAW / "dataset.json")
    with replacing(HISTORY) as history, replacing(MODEL) as model:
        content = train(params.model, params.train, dataset, NORMALIZED, held_out, history)
        model.write_bytes(content)
    print(f"fit {time.perf_counter() - start:.1f} s, model file {len(content) / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
