"""Read runs from Git and dvc.lock, without DVC."""

import csv
import hashlib
import io
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stages.lib.files import DAMAGED
from stages.lib.params import parse_yaml
from stages.lib.results.calibration import bins_of_equal_width
from stages.lib.stage import StageError

WORKSPACE = "workspace"
SOURCES = ("stages", "dvc.yaml", "datasets", "requirements.lock")  # besides params.yaml
EXPERIMENT = re.compile("refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")


def md5(content: bytes) -> str:
    """Compute the MD5 by which DVC identifies a file."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def flat(content: Mapping[str, object], *prefix: str) -> dict[str, object]:
    """Flatten a nested mapping to dotted keys."""
    found: dict[str, object] = {}
    for key, value in content.items():
        found |= (
            flat(value, *prefix, key)
            if isinstance(value, dict)
            else {".".join((*prefix, key)): value}
        )
    return found


def git(*arguments: str) -> str:
    """Run a Git command in the working directory, and return its output."""
    return subprocess.run(
        ["git", *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@dataclass(frozen=True)
class Record:
    """A finished run, in the workspace or at a commit.

    Attributes:
        name: `WORKSPACE`, or an experiment, a branch, a tag or a commit.
        base: Hash of the commit that its parameters are relative to; empty if there is none.
        restore: Command that restores its files to the workspace; empty if not an experiment.
        content: Reads a file by its path in the project.
    """

    name: str
    base: str
    restore: str
    content: Callable[[str], bytes]

    @cached_property
    def stages(self) -> dict[str, Any]:
        """The stages of dvc.lock."""
        lock: Any = parse_yaml(self.content("dvc.lock").decode(), "dvc.lock")
        try:
            return dict(lock["stages"])
        except (LookupError, TypeError, ValueError) as error:
            raise self._unfinished(f"dvc.lock without {error}") from error

    @cached_property
    def digests(self) -> dict[str, str]:
        """The MD5 of each output."""
        try:
            outs = (out for stage in self.stages.values() for out in stage["outs"])
            return {out["path"]: out["md5"] for out in outs}
        except (LookupError, TypeError) as error:
            raise self._unfinished(f"dvc.lock without {error}") from error

    @cached_property
    def params(self) -> dict[str, object]:
        """The parameters that determined the results, by dotted key."""
        params: dict[str, object] = {}
        for stage in self.stages.values():
            params |= flat(stage.get("params", {}).get("params.yaml", {}))
        return params

    @cached_property
    def code(self) -> str:
        """A digest of the stages' source code."""
        deps = (dep for stage in self.stages.values() for dep in stage["deps"])
        files = {(dep["path"], dep["md5"]) for dep in deps if dep["path"].startswith("stages/")}
        return hashlib.sha256(repr(sorted(files)).encode()).hexdigest()[:7]

    @property
    def packages(self) -> str:
        """A digest of requirements.lock."""
        try:
            return md5(self.content("requirements.lock"))[:7]
        except (FileNotFoundError, StageError):
            return "missing"

    def read(self, path: str) -> bytes:
        """Read an output of the pipeline.

        Raises:
            StageError: The file differs from dvc.lock, or is not an output.
        """
        content = self.content(path)
        folder = path.rpartition("/")[0]
        if folder not in self.digests and self.digests.get(path) != md5(content):
            raise self._unfinished(f"{path} differs from dvc.lock")
        return content

    def read_json(self, path: str) -> Any:  # noqa: ANN401  # an object of the pipeline
        """Read a JSON file."""
        return json.loads(self.read(path))

    def read_rows(self, path: str) -> list[dict[str, str]]:
        """Read the rows of a CSV file by its header."""
        return [*csv.DictReader(io.StringIO(self.read(path).decode()))]

    def read_arrays(self, path: str) -> Any:  # noqa: ANN401  # an array, or several by name
        """Read an npy or npz file."""
        content = self.read(path)
        try:
            return np.load(io.BytesIO(content), allow_pickle=False)
        except DAMAGED as error:
            raise self._unfinished(f"{path} is damaged") from error

    @cached_property
    def dataset(self) -> dict[str, Any]:
        """The content of dataset.json."""
        older = {"levels": [0, 255], "background": 0}  # older runs do not record them
        return older | dict(self.read_json("data/raw/dataset.json"))

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probabilities of the test split, shape (n, classes), float32."""
        return np.asarray(self.read_arrays("data/predictions.npz")["test_probabilities"])

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels of the test split, shape (n,), uint8."""
        return self.read_raw("test_labels")

    @cached_property
    def predicted(self) -> np.ndarray:
        """Predicted classes of the test split, shape (n,)."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether each test image is classified correctly, shape (n,), bool."""
        return np.asarray(self.predicted == self.labels)

    @cached_property
    def bins(self) -> np.ndarray:
        """The bin of each test image in the reliability diagram, shape (n,)."""
        return bins_of_equal_width(self.probabilities.max(axis=1).astype(np.float64))

    @property
    def images(self) -> str:
        """Digests of the test split; runs with equal digests are compared image by image."""
        arrays = self.dataset["arrays"]
        return " ".join(arrays[name]["sha256"] for name in ("test_images", "test_labels"))

    def read_raw(self, name: str) -> np.ndarray:
        """Read an array of data/raw, and verify its digest against dataset.json."""
        array = np.asarray(self.read_arrays(f"data/raw/{name}.npy"))
        if hashlib.sha256(array.tobytes()).hexdigest() != self.dataset["arrays"][name]["sha256"]:
            raise self._unfinished(f"data/raw/{name}.npy differs from dataset.json")
        return array

    def reproduce(self) -> list[str]:
        """Return the commands that reproduce the run."""
        if not self.base:
            return ["dvc repro"]
        text = git("show", f"{self.base}:./params.yaml")
        before = flat(parse_yaml(text, "params.yaml"))  # type: ignore[arg-type]
        changes = [f"{k}={v}" for k, v in self.params.items() if before.get(k) != v]
        options = [word for change in changes for word in ("-S", change)]
        run = ["dvc", "exp", "run", *options] if changes else ["dvc", "repro"]
        return [f"git checkout {self.base[:12]}", shlex.join(run)]

    def _unfinished(self, found: str) -> StageError:
        return StageError(f"{self.name}: not a finished run: {found}; run dvc repro")


def read_records(names: Sequence[str]) -> list[Record]:
    """Read finished runs.

    Args:
        names: `WORKSPACE`, or revisions that DVC resolves.

    Raises:
        StageError: A name is unknown, or has no finished run.
    """
    found = {}
    if revisions := [name for name in names if name != WORKSPACE]:
        from tools.lib.runs import read_runs  # imports DVC, not needed for the workspace

        for each in read_runs(revisions):
            base, restore = _origin(each.commit)
            found[each.name] = Record(each.name, base, restore, each.read_bytes)
    if WORKSPACE in names:
        try:
            base = git("rev-parse", "HEAD")
            git("show", f"{base}:./params.yaml")
        except (subprocess.CalledProcessError, FileNotFoundError):  # no commit yet
            base = ""
        found[WORKSPACE] = Record(WORKSPACE, base, "", lambda path: Path(path).read_bytes())
    return [found[name] for name in dict.fromkeys(names) if name in found]


def _origin(commit: str) -> tuple[str, str]:
    """Return the base of a commit, and the command that restores it if it is an experiment."""
    refs = git("for-each-ref", "--points-at", commit, "--format=%(refname)", "refs/exps")
    for match in map(EXPERIMENT.fullmatch, refs.splitlines()):
        if match:
            return match[1] + match[2], f"dvc exp apply {shlex.quote(match[3])}"
    return commit, ""


def uncommitted_sources() -> list[str]:
    """List files of the pipeline that differ from HEAD."""
    return git("diff", "--name-only", "--relative", "HEAD", "--", *SOURCES).splitlines()
