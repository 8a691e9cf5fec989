"""Read finished runs of the pipeline from Git and the DVC cache, without a checkout."""

import hashlib
import io
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import RevError, resolve_rev
from dvc_data.index import DataIndexDirError
from fsspec.implementations.dirfs import DirFileSystem

from stages.lib.files import DAMAGED
from stages.lib.params import parse_yaml
from stages.lib.stage import StageError
from tools.lib.records import flat, git, md5

SCORES = ("accuracy", "errors", "loss", "ece")
ECE_QUANTILE = "ece_if_calibrated_q95"  # of a perfectly calibrated model; older runs lack it
METRICS, MORE_SCORES = "reports/metrics.json", "reports/scores.json"
LOCK = "requirements.lock"
PREDICTIONS = "data/predictions.npz"
MAKERS = ("normalize", "train", "predict")  # the stages that determine the predictions


@dataclass(frozen=True)
class Run:
    """A run of the pipeline, as recorded in dvc.lock and the reports of its commit.

    Attributes:
        name: An experiment, a branch, a tag or a commit.
        dataset: Name of the dataset.
        images: DVC's digest of data/raw.
        replicate: `train.seed` and `normalize.seed`, which selects the training images.
        params: Everything else that determines the predictions, by dotted key: parameters, `code`
            (digest of the stages' source) and `lock` (digest of requirements.lock).
        scores: `SCORES` of the test split, and `ECE_QUANTILE` if the run reports it.
        predictions: DVC's digest of data/predictions.npz.
        files: The project's files at its commit, from `open_commit`.
    """

    name: str
    dataset: str
    images: str
    replicate: tuple[int, int]
    params: Mapping[str, object]
    scores: Mapping[str, float]
    predictions: str
    files: DirFileSystem = field(repr=False, compare=False)

    @property
    def configuration(self) -> str:
        """Everything that determines the predictions, except the dataset and the replicate."""
        return repr(sorted(self.params.items()))

    @property
    def commit(self) -> str:
        """The hash of its commit."""
        return str(self.files.fs.repo.get_rev())

    def read_bytes(self, path: str) -> bytes:
        """Read a file of the run.

        Raises:
            StageError: The file is not in Git, the DVC cache or the DVC remote.
        """
        try:
            return bytes(self.files.read_bytes(path))
        except (*DAMAGED, DvcException, DataIndexDirError) as error:
            raise self._unreadable(path, error) from error

    def read(self, path: str) -> Any:  # noqa: ANN401  # arrays or JSON
        """Read an npy, npz or JSON file of the run.

        Raises:
            StageError: The file is missing or damaged.
        """
        content = self.read_bytes(path)
        try:
            return (
                json.loads(content)
                if path.endswith(".json")
                else np.load(io.BytesIO(content), allow_pickle=False)
            )
        except DAMAGED as error:
            raise self._unreadable(path, error) from error

    def _unreadable(self, path: str, error: Exception) -> StageError:
        words = " ".join(str(error).split())
        return StageError(
            f"{self.name}: cannot read {path} ({words}); "
            f"restore it: {'; '.join(restore_commands([self]))}; "
            "if the results differ on this CPU, commit them and use that commit"
        )


def open_commit(commit: str) -> DirFileSystem:
    """Open the project's files at a commit, by their paths in the project.

    Content comes from Git, the DVC cache, or the DVC remote that is configured now, not that of the
    commit. The project may be a subfolder of its Git repository, which DVC treats as a subrepo.
    """
    with Repo() as repo:
        folder = os.path.relpath(repo.root_dir, repo.scm.root_dir)
        remote = repo.config["core"].get("remote")
        config = {"core": {"remote": remote}, "remote": repo.config["remote"]} if remote else {}
    factory = partial(Repo, config=config)
    files = DVCFileSystem(".", rev=commit, subrepos=True, config=config, repo_factory=factory)
    return DirFileSystem(folder, files)


def read_run(name: str, commit: str) -> Run:
    """Read one run.

    Args:
        name: Name of the run.
        commit: Hash of its commit.

    Raises:
        StageError: The commit has no finished run of this pipeline.
    """
    files = open_commit(commit)
    try:
        content: Any = parse_yaml(files.read_text("dvc.lock", encoding="utf-8"), "dvc.lock")
        lock = content["stages"]
        params: dict[str, object] = {}
        for stage in ("fetch", *MAKERS):
            params |= flat(lock[stage].get("params", {}).get("params.yaml", {}))
        code = {
            (dep["path"], dep["md5"])
            for stage in MAKERS
            for dep in lock[stage]["deps"]
            if "stages/" in dep["path"]
        }
        (predictions,) = (out["md5"] for out in lock["predict"]["outs"])
        (images,) = (dep["md5"] for dep in lock["normalize"]["deps"] if dep["path"] == "data/raw")
        measured = {
            item["path"]: item["md5"]
            for item in lock["evaluate"]["deps"] + lock["evaluate"]["outs"]
        }
        reports = {
            path: files.read_bytes(path) for path in (METRICS, MORE_SCORES) if path in measured
        }
        if measured[PREDICTIONS] != predictions or any(
            measured[path] != md5(content) for path, content in reports.items()
        ):
            raise ValueError("reports that do not match the predictions; run dvc repro")
        reported = json.loads(reports.get(MORE_SCORES, b"{}")) | json.loads(reports[METRICS])
        dataset = str(params.pop("dataset"))
        seed, split = params.pop("train.seed"), params.pop("normalize.seed")
        params.pop("fetch.source")  # the images are the same from every source
        if params["model.kind"] == "pca_knn":  # ignores the section train
            params = {key: value for key, value in params.items() if not key.startswith("train.")}
        params["code"] = hashlib.sha256(repr(sorted(code)).encode()).hexdigest()[:7]
        params["lock"] = md5(files.read_bytes(LOCK))[:7] if files.exists(LOCK) else "missing"
        scores = {name: float(reported[name]) for name in SCORES}
        scores |= {name: float(reported[name]) for name in (ECE_QUANTILE,) if name in reported}
    except (StageError, OSError, DvcException, LookupError, TypeError, ValueError) as error:
        words = " ".join(str(error).split())
        words = f"no {words}" if isinstance(error, LookupError) else words or type(error).__name__
        raise StageError(f"{name}: not a finished run (dvc.lock, reports): {words}") from error
    if not (0 <= scores["accuracy"] <= 1 and isinstance(seed, int) and isinstance(split, int)):
        raise StageError(
            f"{name}: expected an accuracy from 0 to 1 and integer seeds, "
            f"found {scores['accuracy']}, {seed!r} and {split!r}"
        )
    return Run(name, dataset, images, (seed, split), params, scores, predictions, files)


def restore_commands(runs: Sequence[Run]) -> list[str]:
    """Return commands that restore predictions missing from the DVC cache and remote.

    They use the cache of the main Git worktree if it has the predictions, and otherwise repeat the
    runs.
    """
    with Repo() as repo:
        experiments = {
            commit: (name, base)
            for base, named in repo.experiments.ls(all_commits=True).items()
            for name, commit in named
        }
        own = Path(repo.cache.local.path)
    main = Path(git("rev-parse", "--path-format=absolute", "--git-common-dir")).parent
    shared = main / git("rev-parse", "--show-prefix") / ".dvc/cache"
    commands = []
    for each in runs:
        commit = each.commit
        shared_object = shared / "files/md5" / each.predictions[:2] / each.predictions[2:]
        if own != shared / "files/md5" and shared_object.exists():
            commands.append(shlex.join(["dvc", "cache", "dir", "--local", str(shared)]))
        elif commit in experiments:
            name, base = experiments[commit]
            commands.append(rerun_command(name, commit, base))
        else:
            commands.append(f"git checkout {each.name} && dvc repro")
    return [*dict.fromkeys(commands)]


def read_params_of(commit: str) -> dict[str, object]:
    """Read the values of a commit's params.yaml by dotted key."""
    text = open_commit(commit).read_text("params.yaml", encoding="utf-8")
    content: Any = parse_yaml(text, "params.yaml")
    return flat(content)


def rerun_command(name: str, commit: str, base: str) -> str:
    """Return a command that repeats an experiment with the parameters that it changed.

    Args:
        name: Name of the experiment.
        commit: Hash of its commit.
        base: Hash of the commit that it is based on.
    """
    old, new = (read_params_of(rev) for rev in (base, commit))
    changes = [f"{key}={value}" for key, value in new.items() if old.get(key) != value]
    words = ["dvc", "exp", "run", "--temp", "--name", name]
    for change in changes:
        words += ["-S", change]
    checkout = "" if base == git("rev-parse", "HEAD") else f"git checkout {base[:7]} && "
    return f"{checkout}dvc exp remove {name} && {shlex.join(words)}"


def list_experiments(repo: Repo, *, every: bool) -> dict[str, str]:
    """List the experiments on HEAD, or on every commit: their names by commit.

    Ambiguous names are followed by the commit that the experiment is based on.
    """
    found = repo.experiments.ls(all_commits=every).items()
    listed = [(name, commit, base) for base, named in found for name, commit in sorted(named)]
    times = Counter(name for name, _, _ in listed)
    return {
        commit: name if times[name] == 1 else f"{name} ({base[:7]})"
        for name, commit, base in listed
    }


def has_predictions(each: Run) -> bool:
    """Return whether the predictions of a run are in the DVC cache or the remote."""
    try:
        each.files.read_bytes(PREDICTIONS)
    except (OSError, DvcException):
        return False
    return True


def read_runs(names: Sequence[str], *, every: bool = False) -> list[Run]:
    """Read runs by name.

    Experiments that are not named explicitly are skipped, with a message, if they are unfinished or
    if their predictions are neither in the DVC cache nor in the remote.

    Args:
        names: Experiments, branches, tags, commits; if empty, all experiments on HEAD.
        every: Whether to read all experiments on all commits.

    Returns:
        The runs in the given order, each commit once.

    Raises:
        StageError: A name is unknown or has no finished run, or there are no runs.
    """
    with Repo() as repo:
        commits: dict[str, str] = {}
        for name in names:
            try:
                if not name:  # Git would resolve it to HEAD
                    raise RevError("empty name")
                commits.setdefault(resolve_rev(repo.scm, name), name)
            except (RevError, DvcException) as error:
                raise StageError(
                    f"{name}: not an experiment, branch, tag or commit ({error}); "
                    "`dvc exp list` shows the experiments"
                ) from error
        if every or not names:
            commits = list_experiments(repo, every=every) | commits
    if not commits:
        where = "" if every else " on this commit (COMPARE=--all includes other commits)"
        raise StageError(f"no experiments{where}; run `make experiments` or pass revisions")
    runs: list[Run] = []
    missing: list[Run] = []
    for commit, name in commits.items():
        try:
            each = read_run(name, commit)
        except StageError as error:
            if name in names:
                raise
            print(f"skipped {error}", file=sys.stderr)
            continue
        (runs if name in names or has_predictions(each) else missing).append(each)
    if missing:
        skipped = ", ".join(each.name for each in missing)
        print(
            f"skipped, predictions neither in the DVC cache nor in a remote: {skipped}",
            "To restore them:",
            *(f"    {command}" for command in restore_commands(missing)),
            sep="\n",
            file=sys.stderr,
        )
    if not runs:
        raise StageError(
            f"none of the {len(commits)} experiments can be read; the reasons are above"
        )
    return runs
