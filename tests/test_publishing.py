"""Publishing a model, and its use elsewhere: the commands and the code of docs/handing-over.md."""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest

from stages.lib.models.runtime import read_model
from tests.helpers import (
    CLASSES,
    ROOT,
    Clone,
    clone_env,
    code_blocks,
    console_commands,
    described,
    new_clone,
    small_mlp,
    tiny_arrays,
)

PAGE = "docs/handing-over.md"
# Prints which third-party packages the code between the two has imported.
BEFORE = "import sys; started_with = set(sys.modules)\n"
AFTER = """
names = {name.split(".")[0] for name in set(sys.modules) - started_with}
print(sorted(names - sys.stdlib_module_names))
"""


(CODE,) = code_blocks(PAGE, "python")


class Published(NamedTuple):
    """A project with a published model, and the files that a reader has downloaded."""

    project: Clone
    reader: Clone
    url: str
    models: dict[str, bytes]  # of the version and of the experiment, as trained


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The page's commands in their order: set up, publish a version and an experiment, download.

    The model is `pca_knn`, which trains without TensorFlow.
    """
    folder = tmp_path_factory.mktemp("publishing")
    for name in ("tools", "storage", "elsewhere"):
        (folder / name).mkdir()
    origin = folder / "origin.git"
    project = new_clone(folder / "project", folder / "tools")
    reader = Clone(folder / "elsewhere", clone_env(folder / "tools", "reader"))
    publish, download, *_, set_up, experiment, _ = console_commands(PAGE)

    def follow(clone: Clone, lines: list[str]) -> None:
        for line in lines:
            known = line.replace("URL", origin.as_uri()).replace("STORAGE", f"{folder}/storage")
            clone.call("sh", "-c", known)

    project.call("git", "init", "--quiet", "--bare", "-b", "main", str(origin))
    project.call("git", "branch", "--move", "--force", "main")
    project.edit({"model.kind": "pca_knn", "model.pca_knn.components": 4})
    project.call("dvc", "repro", "--quiet", "predict")
    model = project.path / "data/model.onnx"
    models = {"model.onnx": model.read_bytes()}
    project.call("git", "commit", "--quiet", "--all", "--message", "Run")
    follow(project, set_up)
    follow(project, publish)
    change = "model.pca_knn.components=3"
    project.call("dvc", "exp", "run", "--quiet", "-n", "tuned", "-S", change, "train")
    models["tuned.onnx"] = model.read_bytes()
    follow(project, experiment)
    follow(reader, download)
    np.save(reader.path / "images.npy", tiny_arrays()["test_images"])
    return Published(project, reader, origin.as_uri(), models)


@pytest.mark.slow
def test_reader_gets_published_version_and_experiment(published: Published) -> None:
    downloaded = {path.name: path.read_bytes() for path in published.reader.path.glob("*.onnx")}
    assert downloaded == published.models
    assert len({*downloaded.values()}) == 2


@pytest.mark.slow
def test_untagged_version_is_rejected(published: Published) -> None:
    get = ("dvc", "artifacts", "get", published.url, "classifier")
    refusal = published.reader.call(*get, "--rev", "v2.0.0", code=1)
    assert "Unable to find artifact 'classifier @ v2.0.0'" in refusal


@pytest.mark.slow
def test_code_predicts_the_classes_of_the_pipeline(published: Published) -> None:
    shown = published.reader.call(sys.executable, "-I", "-c", CODE)
    assert shown.strip() == str(expected_classes(published.project))


@pytest.mark.slow
@pytest.mark.network
def test_code_runs_with_only_numpy_and_onnxruntime(published: Published, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv/bin/python")
    published.reader.call(python, "-m", "pip", "install", "--quiet", "numpy", "onnxruntime")
    shown = published.reader.call(python, "-I", "-c", CODE)
    assert shown.strip() == str(expected_classes(published.project))


def expected_classes(project: Clone) -> list[str]:
    """The classes that the predict stage finds for the test images."""
    with np.load(project.path / "data/predictions.npz", allow_pickle=False) as file:
        return [CLASSES[i] for i in file["test_probabilities"].argmax(axis=1)]


@pytest.fixture
def folder(tmp_path: Path) -> Clone:
    """A folder with a model file, also under data/, and images to predict."""
    content = small_mlp(*described())
    (tmp_path / "data").mkdir()
    for name in ("model.onnx", "data/model.onnx"):
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "images.npy", tiny_arrays()["test_images"])
    env = clone_env(tmp_path / "tools", "folder") | {"PYTHONPATH": str(ROOT)}
    return Clone(tmp_path, env)


def test_page_has_few_commands_and_lines_of_code() -> None:
    """Three commands publish, two download, and five lines of code predict."""
    publish, download, *_ = console_commands(PAGE)
    lines = [line for line in CODE.splitlines() if line]
    assert (len(publish), len(download), len(lines)) == (3, 2, 5)


def test_code_imports_only_numpy_and_onnxruntime(folder: Clone) -> None:
    printed = folder.call(sys.executable, "-I", "-c", BEFORE + CODE + AFTER).splitlines()
    model = read_model(folder.path / "model.onnx")
    predicted = model(tiny_arrays()["test_images"]).argmax(axis=1)
    assert printed == [str([model.classes[i] for i in predicted]), "['numpy', 'onnxruntime']"]


def test_clone_checks_model_file_and_prints_metadata(folder: Clone) -> None:
    ((command,),) = console_commands(PAGE)[-1:]
    assert "kind='mlp', parameters=240" in folder.call("sh", "-c", command)
    (folder.path / "data/model.onnx").write_bytes(b"damaged")
    assert "not a model file" in folder.call("sh", "-c", command, code=1)


def test_page_lists_the_metadata_of_a_model_file(folder: Clone) -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    table = text.partition("| key | value |")[2].partition("\n\n")[0]
    listed = " ".join(row.split("|")[1] for row in table.splitlines() if row)
    model = onnx.load(folder.path / "model.onnx")
    assert re.findall(r"`(\w+)`", listed) == [prop.key for prop in model.metadata_props]
