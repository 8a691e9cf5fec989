"""The repository as distributed: dependencies, line endings, ignored files, make."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Set
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.helpers import ROOT, Clone, clone_env, copy_files

COMMANDS = {"mypy", "pytest-xdist", "ruff", "uv"}  # dev dependencies that nothing imports
PLUGINS = {"dvc-ssh", "dvc-webdav"}  # dev dependencies that DVC imports, for remotes in tests
EXTENSIONS = {"python-multipart"}  # dependencies that others import: FastAPI, to parse uploads


def packages(requirements: Iterable[str]) -> set[str]:
    """The names in requirements such as `pandas>=2.3`, normalized."""
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in requirements]
    return {re.sub("[-_.]+", "-", name).lower() for name in names}


def imports(source: str) -> set[str]:
    """Top-level names of the modules that a source file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def imported_packages(*folders: str) -> set[str]:
    """Third-party packages that the modules below some folders import."""
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    files = [file for file in files if ".venv" not in file.parts]
    names = {name for file in files for name in imports(file.read_text(encoding="utf-8"))}
    return names - {"stages", "tools", "benchmarks", "tests"} - sys.stdlib_module_names


def dependency_faults(
    imported: set[str], declared: set[str], optional: Set[str] = frozenset()
) -> list[str]:
    """Compares imports with declared packages; nothing has to import the optional ones."""
    providers = packages_distributions()
    provided_by = {name: packages(providers.get(name, [name])) for name in imported}
    faults = [
        f"{name} is undeclared"
        for name, candidates in sorted(provided_by.items())
        if not candidates & (declared | optional)
    ]
    used = {candidate for candidates in provided_by.values() for candidate in candidates}
    return faults + [f"{name} is unused" for name in sorted(declared - used)]


def test_declared_dependencies_match_imports() -> None:
    file = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, groups = file["project"], file["dependency-groups"]
    core, bench = packages(project["dependencies"]), packages(groups["bench"])
    dev = packages(project["optional-dependencies"]["dev"])
    stubs = {name for name in dev if name.startswith("types-") or name.endswith("-stubs")}
    assert dependency_faults(imported_packages("stages", "tools"), set(), core) == []
    pipeline = imported_packages("stages", "tools", "benchmarks")
    assert dependency_faults(pipeline, (core | bench) - EXTENSIONS) == []
    unimported = stubs | COMMANDS | PLUGINS
    assert dependency_faults(imported_packages("tests"), dev - unimported, core) == []


def test_undeclared_and_unused_dependencies_are_found() -> None:
    imported = {"sklearn", "ruamel", "dvc", "keras"}
    declared = packages(["scikit_learn>=1.6", "ruamel.yaml[oldlibyaml]>=0.18", "tqdm", "dvc<4"])
    assert dependency_faults(imported, declared) == ["keras is undeclared", "tqdm is unused"]


def test_lock_files_contain_no_registry() -> None:
    for name in ("requirements.lock", "requirements-bench.lock"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        pin = re.compile(r"[\w.-]+==\S+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
        assert [line for line in lines if not pin.fullmatch(line)] == []


def test_autocrlf_does_not_change_files(shipped: Clone, tmp_path: Path) -> None:
    shipped.call("git", "-c", "core.autocrlf=true", "clone", "-q", ".", "../windows")
    names = shipped.call("git", "ls-files").splitlines()
    changed = [
        name
        for name in names
        if (tmp_path / "windows" / name).read_bytes() != (shipped.path / name).read_bytes()
    ]
    assert changed == []


@pytest.mark.parametrize("folder", ["data/letters", "data/own/letters", "data/letters/v1/train"])
def test_dvc_add_tracks_a_folder_below_data(shipped: Clone, folder: str) -> None:
    (shipped.path / folder).mkdir(parents=True)
    (shipped.path / folder / "a.png").write_bytes(b"a")
    (shipped.path / folder).with_name("other.png").write_bytes(b"b")
    shipped.call("dvc", "add", folder)
    ignored = f"{Path(folder).parent}/.gitignore"
    assert shipped.changed() - {ignored} == {f"{folder}.dvc"}


def test_copies_contain_only_tracked_files(shipped: Clone, tmp_path: Path) -> None:
    names = set(shipped.call("git", "ls-files").splitlines())
    (shipped.path / "params.yaml").write_text("dataset: mine\n")
    (shipped.path / "test.log").write_text("grows while the tests run")
    (shipped.path / ".venv").symlink_to(tmp_path)
    copy_files(tmp_path / "copy", shipped.env, shipped.path)
    copied = {path for path in (tmp_path / "copy").rglob("*") if not path.is_dir()}
    assert {path.relative_to(tmp_path / "copy").as_posix() for path in copied} == names
    assert (tmp_path / "copy/params.yaml").read_text() == "dataset: mine\n"


def test_make_lists_every_target_on_a_line(shipped: Clone) -> None:
    makefile = (shipped.path / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.M)
    assert targets is not None
    lines = shipped.call("make").splitlines()
    listed = [line.split()[1] for line in lines if line.startswith("  make ")]
    assert sorted(listed) == sorted(targets[1].split())
    assert max(map(len, lines)) <= 100


def test_folder_without_git_is_rejected_before_install(tmp_path: Path) -> None:
    """A ZIP of the repository has no history; make prints commands that create one."""
    env = clone_env(tmp_path / "tools", "zip") | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    folder = copy_files(tmp_path / "zip", env)
    refusal = folder.call("make", "repro", code=2)
    assert "DVC needs a Git repository. Create one with:\n" in refusal
    assert not (folder.path / ".venv").exists()
    (commands,) = (line for line in refusal.splitlines() if line.startswith("    git init"))
    folder.call("sh", "-c", commands)
    (folder.path / ".venv").mkdir()
    (folder.path / ".venv/installed").touch()  # the packages of these tests are used
    assert folder.call("make", "about").startswith("CPU")
    assert folder.call("dvc", "stage", "list", "--name-only").splitlines()[0] == "fetch"
    assert folder.changed() == set()


def test_stage_reports_python_and_missing_packages(tmp_path: Path) -> None:
    def run(**env: str) -> str:
        command = ["/bin/sh", str(ROOT / "stages/run.sh"), "fetch"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    advice = "; run: . .venv/bin/activate (make repro creates it)\n"
    for name in ("tail", "sh"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    assert run(PATH=str(tmp_path)) == f"fetch: no python on PATH{advice}"
    bare = Path(sys.base_prefix) / f"bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {bare} -S "$@"\n')
    (tmp_path / "python").chmod(0o755)
    assert run(PATH=str(tmp_path)).startswith(f"fetch: {bare} has no PIL, keras, matplotlib, numpy")
    site = tmp_path / "site"  # as in Anaconda: some of the packages
    for name in ("numpy", "psutil", "pydantic", "yaml", "pandas"):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").touch()
    missing = "PIL, keras, matplotlib, onnx, onnxruntime, sklearn, tensorflow, wcwidth"
    line = run(PATH=str(tmp_path), PYTHONPATH=str(site))
    assert line == f"fetch: {bare} has no {missing}{advice}"
