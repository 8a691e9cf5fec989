"""Fixtures: folders and clones in which the stages run on the tiny dataset, and a browser."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers import (
    BROWSER_TIMEOUT,
    ROOT,
    Clone,
    bars_model,
    clone_env,
    commit_all,
    copy_files,
    make_tiny,
    set_params,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A program that a shell starts in the background ignores Ctrl-C, and so would all that it starts in
# turn.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Each run of the stage appends a line to a file.
ONE_STAGE = """\
stages:
  make:
    cmd: mkdir -p out && cp params.yaml out/a && echo b > out/b && echo >> {folder}/ran
    params: [size]
    outs: [out]
"""
ONE_STAGE_CONFIG = """\
[core]
    remote = store
    analytics = false
['remote "store"']
    url = {folder}/store
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with params.yaml, datasets/tiny.yaml and its files, before any run."""
    make_tiny(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def edit(project: Path) -> Callable[[str, object], None]:
    """Set one value of params.yaml by its dotted key."""
    return lambda key, value: set_params(project, {key: value})


@pytest.fixture
def one_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """The working directory: a project of one stage, with folders as Git and DVC remotes."""
    for name in [name for name in os.environ if name.startswith(("GIT_", "DVC_"))]:
        monkeypatch.delenv(name)
    clone = Clone(tmp_path / "clone", clone_env(tmp_path, "clone"))
    for name, value in clone.env.items():
        monkeypatch.setenv(name, value)
    clone.path.mkdir()
    monkeypatch.chdir(clone.path)
    clone.call("git", "init", "--quiet", "--initial-branch", "main")
    (clone.path / ".dvc").mkdir()
    (clone.path / ".dvc/config").write_text(ONE_STAGE_CONFIG.format(folder=tmp_path))
    shutil.copy(ROOT / ".dvc/.gitignore", clone.path / ".dvc")
    (clone.path / "dvc.yaml").write_text(ONE_STAGE.format(folder=tmp_path))
    (clone.path / "params.yaml").write_text("size: 1\n")
    shutil.copy(ROOT / "requirements.lock", clone.path)
    clone.call("git", "add", "--all")
    clone.call("git", "commit", "--quiet", "--message", "Start")
    clone.call(
        "git", "init", "--quiet", "--bare", "--initial-branch", "main", str(tmp_path / "origin")
    )
    clone.call("git", "remote", "add", "origin", str(tmp_path / "origin"))
    clone.call("git", "push", "--quiet", "origin", "main")
    (tmp_path / "store/files/md5").mkdir(parents=True)
    return clone


@pytest.fixture
def shipped(tmp_path: Path) -> Clone:
    """A Git repository with one commit of the project as it is shipped, nothing run yet."""
    (tmp_path / "tools").mkdir()
    clone = copy_files(tmp_path / "project", clone_env(tmp_path / "tools", "shipped"))
    commit_all(clone, "Shipped")
    return clone


@pytest.fixture(scope="session")
def bars_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a model that classifies horizontal and vertical bars."""
    path = tmp_path_factory.mktemp("bars") / "model.onnx"
    path.write_bytes(bars_model())
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """Chromium without network: no name is resolved."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if not program:
        pytest.skip("needs chromium on PATH")
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--no-first-run", "--disable-quic", *quiet, offline]
        browser = playwright.chromium.launch(
            executable_path=program, args=arguments, timeout=BROWSER_TIMEOUT
        )
        yield browser
        browser.close()
