"""The pipeline on the real datasets from package registries is bit-reproducible."""

import shutil
from pathlib import Path

import pytest

from tests.helpers import Clone, clone_env, copy_files, set_params

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> list[Clone]:
    """Two clones of the last commit with the working tree's files, nothing run yet."""
    for program in ("npm", "apt-get"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH")
    folder = tmp_path_factory.mktemp("real")
    clones = [copy_files(folder / name, clone_env(folder, name)) for name in ("one", "two")]
    for clone in clones:
        (clone.path / "dvc.lock").unlink()
        clone.call("git", "init", "-q")
        clone.call("git", "add", "-A")
        clone.call("git", "commit", "-qm", "Before")
    return clones


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_fresh_clones_give_identical_lock_files(clones: list[Clone], dataset: str) -> None:
    for clone in clones:
        set_params(clone.path, {"dataset": dataset, "fetch.source": "packages"})
        clone.call("dvc", "repro")
        assert "match dvc.lock" in clone.call("python", "-m", "tools.verify")
    one, two = (Path(clone.path / "dvc.lock").read_bytes() for clone in clones)
    assert dataset.encode() in one
    assert one == two
