"""Copies of the project in temporary folders, and their datasets."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from stages.lib.files import write_arrays, write_chunks, write_json

ROOT = Path(__file__).parent.parent
DATA = ROOT / "benchmarks" / ".data"
DATASETS = ("mnist", "fashion_mnist")
# Files that affect the results. The machine and package versions are recorded separately.
MEASURED = (
    *("benchmarks/*.py", "stages", "tools/lib"),
    *("tools/classify.py", "tools/dataset.py", "tools/experiments.py", "tools/label_errors.py"),
    *("tools/report.py", "tools/serve.py", "tools/verify.py"),
    *("datasets", "dvc.yaml", "params.yaml"),
)
SETTINGS = (
    *("JAX_", "KERAS_", "MKL_", "OMP_", "OPENBLAS_", "PYTORCH_", "TF_"),
    *("TORCH", "TRITON_", "XLA_"),
)  # prefixes of environment variables
ARRAYS = {
    "x_train": "train_images",
    "y_train": "train_labels",
    "x_test": "test_images",
    "y_test": "test_labels",
}


def environment(**more: str) -> dict[str, str]:
    """Return the environment without settings of the measured libraries.

    Caches of compiled code are disabled, so that each process includes its own compilation.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    own = {
        "PATH": path,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    return kept | own | more


def commit() -> str:
    """Return the commit to measure.

    Raises:
        RuntimeError: The working tree has uncommitted changes.
    """
    if _git("status", "--porcelain", "--", *MEASURED):
        raise RuntimeError("uncommitted changes: commit them first, or pass --quick")
    return _git("rev-parse", "HEAD")


def is_current(measured: str) -> bool:
    """Return whether the measured code has not changed since a commit."""
    command = ["git", "diff", "--quiet", measured, "HEAD", "--", *MEASURED]
    return not subprocess.run(command, cwd=ROOT, capture_output=True).returncode


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def call(*command: str, cwd: Path) -> None:
    """Run a command without timing or printing it; an error contains its output."""
    done = subprocess.run(command, cwd=cwd, env=environment(), text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} in {cwd}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )


def edit(path: Path, values: Mapping[str, Any]) -> None:
    """Set values in a YAML file by dotted key."""
    yaml = YAML()
    content = yaml.load(path.read_text(encoding="utf-8"))
    for key, value in values.items():
        *parents, last = key.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        section[last] = value
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def copy_project(folder: Path, params: Mapping[str, Any]) -> Path:
    """Copy the tracked and untracked files into a new repository, without results of earlier runs.

    Args:
        folder: Destination; must not exist.
        params: Values to set in params.yaml.

    Returns:
        The folder.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if not name.startswith(("reports/", "dvc.lock")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    call("git", "init", "--quiet", cwd=folder)
    for name in DATASETS:
        if (DATA / f"{name}.npz").exists():
            source = {"folder": str(DATA), "files": {"npz": f"{name}.npz"}}
            edit(folder / "datasets" / f"{name}.yaml", {"sources": {"npz": source}})
    edit(folder / "params.yaml", {"fetch.source": "auto", **params})
    return folder


def fetch_data(scratch: Path) -> None:
    """Fetch both datasets once, and keep each in Keras's format, an npz of four arrays.

    Args:
        scratch: An empty folder to work in.
    """
    for dataset in DATASETS:
        if not (DATA / f"{dataset}.npz").exists():
            folder = copy_project(scratch / dataset, {"dataset": dataset})
            print(f"fetches {dataset}", flush=True)
            call("python", "-m", "stages.fetch", cwd=folder)
            arrays = {
                short: np.load(folder / f"data/raw/{name}.npy") for short, name in ARRAYS.items()
            }
            DATA.mkdir(exist_ok=True)
            np.savez_compressed(DATA / f"{dataset}.npz", allow_pickle=False, **arrays)


def write_synthetic(raw: Path, train: int, test: int, classes: list[str]) -> None:
    """Write images that an MLP can classify, in chunks to limit memory.

    Each class is a random pattern with noise; 2% of the labels are wrong, so that there are errors
    to extract.

    Args:
        raw: The folder `data/raw` to create.
        train: Number of training images.
        test: Number of test images.
        classes: Their names.
    """
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 128, (len(classes), 28, 28), np.uint8)
    written: dict[str, object] = {}
    for split, count in (("train", train), ("test", test)):
        labels = rng.integers(0, len(classes), count).astype(np.uint8)
        parts = (labels[start : start + 4096] for start in range(0, count, 4096))
        images = (
            patterns[part] + rng.integers(0, 128, (len(part), 28, 28), np.uint8) for part in parts
        )
        shape = (count, 28, 28)
        written[f"{split}_images"] = write_chunks(
            raw / f"{split}_images.npy", shape, np.uint8, images
        )
        wrong = rng.random(count) < 0.02
        labels[wrong] = (labels[wrong].astype(int) + 1) % len(classes)
        written |= write_arrays(raw, {f"{split}_labels": labels})
    about = {"name": "synthetic", "title": "Synthetic", "classes": classes, "flip": False}
    gray = {"levels": [0, 254], "background": 127}
    write_json(raw / "dataset.json", {**about, **gray, "arrays": written})
