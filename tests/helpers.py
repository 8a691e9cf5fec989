"""Helpers shared by test modules: the tiny dataset, clones, small models."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from ruamel.yaml import YAML

from stages.lib.models.graph import Graph, describe
from stages.lib.sources.fetching import digest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

ROOT = Path(__file__).parent.parent
Edit = Callable[[str, object], None]  # sets a value of params.yaml by its dotted key
STAGES = ["fetch", "normalize", "train", "predict", "evaluate", "plot", "extract_errors"]
CLASSES = ["bar", "blot", "frame"]
COUNTS = {"train": 90, "test": 30}
HEIGHT, WIDTH = 6, 5


def tiny_arrays() -> dict[str, np.ndarray]:
    """Images of three shapes under noise, in the catalog's four arrays; the same at every call."""
    rng = np.random.default_rng(7)
    shapes = np.zeros((3, HEIGHT, WIDTH))
    shapes[0, :, 2] = shapes[1, 2:4, 1:4] = shapes[2, [0, -1]] = 200
    arrays = {}
    for split, count in COUNTS.items():
        labels = rng.permutation(np.arange(count) % 3).astype(np.uint8)
        noise = rng.integers(0, 56, (count, HEIGHT, WIDTH))
        arrays[f"{split}_images"] = (shapes[labels] + noise).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    return arrays


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as an IDX file."""
    return (
        bytes([0, 0, 8, array.ndim])
        + b"".join(n.to_bytes(4, "big") for n in array.shape)
        + array.tobytes()
    )


def tiny_entry() -> dict[str, Any]:
    """The content of datasets/tiny.yaml: IDX files in a folder of the project."""
    return {
        "title": "Tiny",
        "license": "none needed",
        "classes": CLASSES,
        "image": [HEIGHT, WIDTH],
        "images": COUNTS,
        "sha256": {name: digest(array) for name, array in tiny_arrays().items()},
        "sources": {
            "local": {"folder": "tiny", "files": {name: f"{name}.idx" for name in tiny_arrays()}}
        },
    }


def write_yaml(path: Path, content: object) -> None:
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(content, file)


def read_yaml(path: Path) -> Any:  # noqa: ANN401  # whatever the file holds
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def read_entry(folder: Path, name: str) -> dict[str, Any]:
    """Read a dataset definition in a folder's datasets/."""
    content: dict[str, Any] = read_yaml(folder / f"datasets/{name}.yaml")
    return content


def shipped_entries() -> dict[str, Any]:
    """The datasets of the project."""
    return {path.stem: read_yaml(path) for path in sorted((ROOT / "datasets").glob("*.yaml"))}


def write_entry(folder: Path, name: str, entry: object) -> None:
    """Write a dataset definition in a folder's datasets/."""
    (folder / "datasets").mkdir(exist_ok=True)
    write_yaml(folder / f"datasets/{name}.yaml", entry)


def set_params(folder: Path, values: dict[str, object]) -> None:
    """Set values of a folder's params.yaml by their dotted keys."""
    params = read_yaml(folder / "params.yaml")
    for key, value in values.items():
        section = params
        *parents, last = key.split(".")
        for parent in parents:
            section = section[parent]
        section[last] = value
    write_yaml(folder / "params.yaml", params)


def make_tiny(folder: Path) -> None:
    """Point the project in a folder at the tiny dataset, small enough to train in a second."""
    (folder / "tiny").mkdir()
    for name, array in tiny_arrays().items():
        (folder / "tiny" / f"{name}.idx").write_bytes(idx(array))
    write_entry(folder, "tiny", tiny_entry())
    params = read_yaml(ROOT / "params.yaml")
    params["dataset"] = "tiny"
    params["normalize"]["validation"] = 18
    params["model"]["mlp"]["hidden"] = [8]
    params["train"] |= {"epochs": 2, "batch_size": 10}
    write_yaml(folder / "params.yaml", params)


def described(
    *image: int, classes: int = len(CLASSES), flip: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """dataset.json and scaling.json, as far as a model depends on them."""
    arrays = {"train_images": {"shape": [1, *(image or (HEIGHT, WIDTH))]}}
    names = [f"class {i}" for i in range(classes)]
    dataset = {"name": "tiny", "title": "Tiny", "classes": names, "flip": flip, "background": 0}
    return dataset | {"arrays": arrays}, {"offset": 0.0, "divisor": 255.0}


def small_mlp(dataset: Mapping[str, Any], scaling: Mapping[str, Any]) -> bytes:
    """A model file of 8 hidden units with random weights, made without Keras."""
    rng = np.random.default_rng(5)
    pixels = math.prod(dataset["arrays"]["train_images"]["shape"][1:])
    graph = Graph(scaling["offset"], scaling["divisor"])
    name = graph.add("Flatten", graph.scaled)
    name = graph.add("Gemm", name, graph.constant(rng.normal(size=(pixels, 8))))
    name = graph.add("Relu", name)
    weights = rng.normal(size=(8, len(dataset["classes"])))
    name = graph.add("Gemm", name, graph.constant(weights), graph.constant(weights[0]))
    metadata = describe(dataset, "mlp", 8 * pixels, 9)
    return graph.finish(graph.add("Softmax", name, axis=1), metadata)


def bars_model(
    classes: Sequence[str] = ("horizontal", "vertical"), *, color: bool = False, title: str = "Bars"
) -> bytes:
    """A model file that separates horizontal and vertical bars, with a unit per row and column.

    Further classes are never predicted.
    """
    size = 14
    lines = np.eye(size)
    units = np.hstack([np.repeat(lines, size, axis=0), np.tile(lines, (size, 1))])
    if color:
        units = np.repeat(units, 3, axis=0) / 3
    outputs = np.zeros((2 * size, len(classes)))
    outputs[:size, 0] = outputs[size:, 1] = 2
    biases = np.where(np.arange(len(classes)) < 2, 0, -9)
    graph = Graph(0, 255)
    name = graph.add("Flatten", graph.scaled)
    name = graph.add("Gemm", name, graph.constant(units), graph.constant(np.full(2 * size, -4)))
    name = graph.add("Relu", name)
    name = graph.add("Gemm", name, graph.constant(outputs), graph.constant(biases))
    image = [1, size, size, *([3] if color else [])]
    dataset = {"name": "bars", "title": title, "classes": list(classes), "background": 0}
    metadata = describe(dataset | {"arrays": {"train_images": {"shape": image}}}, "mlp", 0, 0)
    return graph.finish(graph.add("Softmax", name, axis=1), metadata)


BROWSER_TIMEOUT = 120_000  # ms, on a busy machine


def open_context(browser: "Browser", **options: Any) -> "BrowserContext":  # noqa: ANN401
    """Open a browser context that waits long enough."""
    context = browser.new_context(**options)
    context.set_default_timeout(BROWSER_TIMEOUT)
    return context


# Python runs this at each start, so that stages record themselves instead of DVC's messages.
WATCH = """
import os, sys
def note(word):
    with open(os.environ["WATCHED"], "a") as file:
        file.write(word + "\\n")
if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("stages."):
    note(sys.orig_argv[2].removeprefix("stages."))
sys.addaudithook(lambda event, args: note("tensorflow") if event == "import" and args[0] ==
"tensorflow" else None)
"""


def outs(entry: dict[str, Any]) -> dict[str, bool]:
    """Return the outputs of an entry of dvc.yaml, and whether DVC caches each."""
    options: dict[str, dict[str, Any]] = {}
    for out in entry["outs"]:
        options |= out if isinstance(out, dict) else {out: {}}
    return {path: option.get("cache", True) for path, option in options.items()}


@dataclass
class Clone:
    """A Git repository with the project in it, and the environment of its commands."""

    path: Path
    env: dict[str, str]

    def call(self, *command: str, code: int = 0) -> str:
        """Run a command, assert its exit code, and return stdout, and stderr if it fails."""
        result = subprocess.run(
            command, cwd=self.path, env=self.env, capture_output=True, text=True
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout + result.stderr * (code != 0)

    def json(self, *command: str) -> Any:  # noqa: ANN401  # whatever DVC prints
        return json.loads(self.call(*command, "--json"))

    def ran(self, *command: str, code: int = 0) -> list[str]:
        """Return the stages that a command ran, each followed by tensorflow if it imports it."""
        watched = Path(self.env["WATCHED"])
        watched.write_text("")
        self.call(*command, code=code)
        return watched.read_text().split()

    def changed(self) -> set[str]:
        """Return the files that are modified or untracked in Git."""
        return {
            line[3:] for line in self.call("git", "status", "--porcelain", "-uall").splitlines()
        }

    def edit(self, values: dict[str, object]) -> None:
        set_params(self.path, values)


def family(mark: str) -> list[psutil.Process]:
    """The processes in whose environment FAMILY is this mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # a process that ended meanwhile
            if process.environ().get("FAMILY") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def clone_env(tools: Path, name: str) -> dict[str, str]:
    """Return an environment without settings of Git, DVC and make; `tools` is on PYTHONPATH."""
    settings = "GIT_", "DVC_", "MAKE", "MFLAGS"  # `make test` passes its own on
    env = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    env |= {
        f"GIT_{who}_{what}": "test@example.org"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    env |= {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "DVC_SITE_CACHE_DIR": str(tools / "site"),
    }
    env |= {
        "DVC_GLOBAL_CONFIG_DIR": str(tools / "none"),
        "DVC_SYSTEM_CONFIG_DIR": str(tools / "none"),
    }
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "PYTHONPATH": str(tools)}
    return env | {"WATCHED": str(tools / f"{name}.txt")}


def copy_files(path: Path, env: dict[str, str], root: Path = ROOT) -> Clone:
    """Copies the tracked files of a working tree, with their uncommitted changes."""
    for name in filter(None, Clone(root, env).call("git", "ls-files", "-z").split("\0")):
        if (root / name).exists():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, path / name)
    return Clone(path, env)


def commit_all(clone: Clone, message: str) -> None:
    clone.call("git", "init", "-q")
    clone.call("git", "add", "-A")
    clone.call("git", "commit", "-qm", message)


def new_clone(path: Path, tools: Path) -> Clone:
    """Commit the working tree's files with the datasets tiny (selected) and tiny2."""
    clone = copy_files(path, clone_env(tools, path.name))
    make_tiny(path)
    negatives = {
        name: 255 - a if name.endswith("images") else a for name, a in tiny_arrays().items()
    }
    entry = tiny_entry() | {
        "title": "Tiny 2",
        "sha256": {name: digest(a) for name, a in negatives.items()},
    }
    entry["sources"]["local"]["folder"] = "tiny2"
    (path / "tiny2").mkdir()
    for name, array in negatives.items():
        (path / f"tiny2/{name}.idx").write_bytes(idx(array))
    write_entry(path, "tiny2", entry)
    commit_all(clone, "Before")
    return clone


# Settings that could leak into results. The odd clone runs under them, and the plain one in the
# environment of the tests.
LIBRARY = os.environ.get("LIBFAKETIME") or next(
    map(str, Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), ""
)
CLOCK = [f"LD_PRELOAD={LIBRARY}", "FAKETIME=@1999-12-31 12:00:00"] if LIBRARY else []
ODD = [
    "sh",
    "-c",
    'umask 077 && exec "$@"',
    "sh",
    "env",
    "LC_ALL=C",
    "TZ=Pacific/Chatham",
    "PYTHONHASHSEED=1",
    *CLOCK,
]


def code_blocks(page: str, language: str) -> list[str]:
    """The contents of the code blocks in a language, of README.md or a page of docs."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def examples(block: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines shown below it."""
    lines = block.splitlines()
    found: list[tuple[str, list[str]]] = []
    while lines:
        command = lines.pop(0).removeprefix("$ ")
        while not _is_complete(command):
            command += "\n" + lines.pop(0)
        shown = []
        while lines and not lines[0].startswith("$ "):
            shown.append(lines.pop(0))
        found.append((command, shown))
    return found


def console_commands(page: str) -> list[list[str]]:
    """The commands of each console block of a page."""
    blocks = code_blocks(page, "console")
    return [[command for command, _ in examples(block)] for block in blocks]


def _is_complete(command: str) -> bool:
    """Whether a command does not continue on the next line."""
    try:
        shlex.split(command, comments=True)
    except ValueError:  # an open quote
        return False
    return not command.endswith("\\")
