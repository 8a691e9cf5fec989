"""Finished runs of the pipeline, read from Git and from DVC's cache without a checkout."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import RevError, resolve_rev
from ruamel.yaml import YAML

from stages.lib.stage import StageError

SCORES = ("accuracy", "accuracy_low", "accuracy_high", "errors", "loss", "ece", "parameters", "multiply_adds")
MAKERS = ("normalize", "train", "predict")  # what they do decides the predictions


@dataclass(frozen=True)
class Run:
    """One run, as dvc.lock and the reports of its commit tell it.

    Attributes:
        name: What the user calls it, or DVC: an experiment, a branch, a commit.
        dataset: Its key in datasets.yaml.
        seed: `train.seed`.
        params: What else decided the predictions, by dotted key; `code` stands for the stages' source.
        scores: `SCORES` of reports/metrics.json.
        predictions: DVC's digest of data/predictions.npz.
        files: Of its commit, those in DVC's cache among them.
    """

    name: str
    dataset: str
    seed: int
    params: Mapping[str, object]
    scores: Mapping[str, float]
    predictions: str
    files: DVCFileSystem = field(repr=False, compare=False)

    def arrays(self, path: str) -> Any:  # noqa: ANN401  # an array, or several by name
        """An npy or npz file of the run.

        Raises:
            StageError: DVC's cache does not have it.
        """
        try:
            return np.load(io.BytesIO(self.files.read_bytes(path)), allow_pickle=False)
        except (OSError, DvcException) as error:
            raise StageError(
                f"{self.name}: {path}: expected it in DVC's cache, found: {error}; dvc pull, or run it again"
            ) from error

    def classes(self) -> list[str]:
        """Names of the classes of the run's data set."""
        names: list[str] = json.loads(self.files.read_text("data/raw/dataset.json", encoding="utf-8"))["classes"]
        return names


def flat(content: Mapping[str, object], *prefix: str) -> dict[str, object]:
    """A nested mapping by dotted keys."""
    found: dict[str, object] = {}
    for key, value in content.items():
        found |= flat(value, *prefix, key) if isinstance(value, dict) else {".".join((*prefix, key)): value}
    return found


def read_run(name: str, commit: str) -> Run:
    """Reads one run.

    Args:
        name: What to call it.
        commit: Where it is, a hash.

    Raises:
        StageError: There is no finished run of this pipeline.
    """
    files = DVCFileSystem(".", rev=commit)
    try:
        lock = YAML(typ="safe").load(files.read_text("dvc.lock", encoding="utf-8"))["stages"]
        scores = json.loads(files.read_text("reports/metrics.json", encoding="utf-8"))
        params: dict[str, object] = {}
        for stage in ("fetch", *MAKERS):
            params |= flat(lock[stage]["params"]["params.yaml"])
        code = {
            (dep["path"], dep["md5"]) for stage in MAKERS for dep in lock[stage]["deps"] if "stages/" in dep["path"]
        }
        (predictions,) = (out["md5"] for out in lock["predict"]["outs"])
        seed, dataset = params.pop("train.seed"), str(params.pop("dataset"))
        params.pop("fetch.source")  # the images are the same wherever they came from
        params["code"] = hashlib.sha256(repr(sorted(code)).encode()).hexdigest()[:7]
        scores = {name: float(scores[name]) for name in SCORES}
    except (OSError, DvcException, LookupError, TypeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise StageError(
            f"{name}: expected a finished run (dvc.lock, reports), found: {words or type(error)}"
        ) from error
    if not 0 <= scores["accuracy"] <= 1 or not isinstance(seed, int):
        raise StageError(
            f"{name}: expected an accuracy from 0 to 1 and a whole seed, found {scores['accuracy']} and {seed!r}"
        )
    return Run(name, dataset, seed, params, scores, predictions, files)


def read_runs(names: Sequence[str], *, every: bool = False) -> list[Run]:
    """Reads runs by name.

    Args:
        names: Experiments, branches, tags, commits; if there are none, the experiments on HEAD.
        every: Whether to read all experiments, on whatever commit they stand.

    Returns:
        The runs, in the order given; a commit named twice is read once.

    Raises:
        StageError: A name means nothing, or nothing is there to be compared.
    """
    with Repo() as repo:
        commits: dict[str, str] = {}
        for name in names:
            try:
                commits.setdefault(resolve_rev(repo.scm, name), name)
            except (RevError, DvcException) as error:
                raise StageError(
                    f"{name}: expected an experiment, a branch, a tag or a commit, found none; dvc exp list"
                ) from error
        if every or not names:
            found = repo.experiments.ls(all_commits=every).values()
            commits = {commit: name for experiments in found for name, commit in sorted(experiments)} | commits
    if not commits:
        raise StageError("experiments: expected some, found none on this commit; make experiments, or name revisions")
    return [read_run(name, commit) for commit, name in commits.items()]
