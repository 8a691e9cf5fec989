"""The commands of README and docs print what is shown there, on the real datasets.

`SCREENSHOT=docs/images/report.png pytest -m slow tests/slow/test_documents.py -k selected` draws a
figure of the docs.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML
from sklearn.datasets import load_digits

from benchmarks.baselines import photos
from stages.lib.sources.fetching import digest
from tests.helpers import (
    ROOT,
    Clone,
    clone_env,
    code_blocks,
    commit_all,
    copy_files,
    examples,
    open_context,
    write_entry,
)
from tests.serving import Server, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Serve = Callable[[AbstractContextManager[Server]], Server]
pytestmark = pytest.mark.slow

PAGES = [
    "CONTRIBUTING.md",
    "README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
# Pages whose commands other tests run, with addresses and files of their own.
ELSEWHERE = {
    "docs/many-machines.md": "test_workers",
    "docs/remotes.md": "test_remotes",
    "docs/template.md": "test_template",
}
# The starts of commands that are not run, and why.
NOT_RUN = {
    ". .venv/bin/activate": "the tests' environment is active",
    "make repro": ".ci/run runs it",
    "make lint": ".ci/run runs it",
    "make test": ".ci/run runs it",
    ".ci/run": "runs before every merge",
    "git add dvc.lock reports": "nothing has changed",
    "make experiments": "takes hours; test_experiments and test_workers run smaller grids",
    "make search": "takes hours; test_search runs smaller searches",
    "make serve": "runs until Ctrl-C; test_serve",
    "ls": "prints columns only in a terminal",
    "dvc exp run -n cnn": "takes ten minutes; the grid has the same configuration",
    "dvc exp run -n deep": "takes 23 minutes; test_train trains smaller CNNs",
    "dvc exp run --queue": "ten fits",
    "dvc queue": "ten fits",
    "dvc push": "test_publishing",
    "git tag": "test_publishing",
    "git push": "test_publishing",
    "dvc artifacts get": "test_publishing",
    "dvc get": "test_publishing",
    "git remote add": "test_publishing",
    "dvc remote add": "test_publishing",
    'git commit -m "Add the DVC remote"': "test_publishing",
    "dvc exp push": "test_publishing",
}
PLACES = {
    "README.md": {
        "NAME PATH": "my_digits digits",
        "NAME": "my_digits",
        "photo.jpg folder/": "digits/0",
    },
    "docs/handing-over.md": {"classify photos": "classify photos 2>&1 || [ $? = 1 ]"},
    "docs/own-images.md": {"NAME PATH": "my_letters digits", "NAME": "my_letters"},
}
# Figures of the docs: the experiment on a page that draws each, and its path there.
FIGURES = {
    "README.md": {
        "fashion_errors": ("fashion", "reports/figures/errors.png"),
        "fashion_samples": ("fashion", "reports/figures/samples.png"),
    },
}


def page_examples(page: str) -> list[tuple[str, list[str]]]:
    """The commands of a page's console blocks, each with the lines shown below it."""
    return [example for block in code_blocks(page, "console") for example in examples(block)]


def masked(line: str, *, exact: bool) -> str:
    """A line without what differs between runs; unless `exact`, also without any numbers."""
    line = re.sub(r"\b[0-9a-f]{7}\b|\bsearch-[0-9a-f]{6}\b|\d\d:\d\d [AP]M|\b[\d.]+ s\b", "#", line)
    if not exact:
        line = re.sub(r"[0-9a-f]{64}|[-+]?[\d.,]*\d(e-?\d+)?", "#", line)
    return re.sub(r"[-\u2500]{2,}", "--", " ".join(line.split()))


def missing(shown: list[str], printed: str, *, exact: bool) -> list[str]:
    """The shown lines that were not printed in this order; "..." stands for the rest of a line."""
    rest = iter([masked(line, exact=exact) for line in printed.splitlines()])

    def follows(line: str) -> bool:
        start = masked(line.removesuffix("..."), exact=exact)
        cut = line.endswith("...")
        return any(found.startswith(start) if cut else found == start for found in rest)

    return [line for line in shown if line not in ("[...]", "...") and not follows(line)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone after `make repro`, with its results committed, and files that pages assume."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not on PATH")
    folder = tmp_path_factory.mktemp("documents")
    env = clone_env(folder, "project") | {"MAKEFLAGS": "INSTALLED="}  # make installs nothing
    clone = copy_files(folder / "project", env)
    commit_all(clone, "Before")
    clone.call("git", "branch", "--move", "--force", "main")
    clone.call("dvc", "repro", "--quiet")
    images, labels = load_digits(return_X_y=True)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = clone.path / f"digits/{label}/{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 255 / 16).round().astype(np.uint8)).save(path)
    with (clone.path / ".git/info/exclude").open("a") as file:
        file.write("digits\nletters\n")
    return clone


@pytest.fixture(scope="module")
def exact(project: Clone) -> bool:
    """Whether this CPU gives the committed results to the last bit; if not, commits its own."""
    same = not project.changed()
    if not same:
        project.call("git", "commit", "-qam", "Results")
    project.call("git", "branch", "start")
    return same


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that runs until the end of the test."""
    with ExitStack() as stack:
        yield stack.enter_context


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_commands_print_what_the_page_shows(
    project: Clone, exact: bool, serve: Serve, page: str
) -> None:
    project.call("git", "reset", "--quiet", "--hard", "start")
    project.call("git", "clean", "--quiet", "--force", "-d")
    project.call("dvc", "exp", "remove", "--quiet", "--all-commits")
    project.call("dvc", "repro", "--quiet")
    address = "http://127.0.0.1:8000"
    if page == "docs/datasets.md":
        write_letters(project)
    if page == "docs/handing-over.md":
        if shutil.which("curl") is None:
            pytest.skip("curl is not on PATH")
        write_photos(project)
        address = serve(serving(project.path / "data/model.onnx", project.path)).address
        project.call("dvc", "exp", "run", "--quiet", "-n", "linear", "-S", "model.kind=linear")
        project.call("git", "restore", ".")
        project.call("dvc", "checkout", "--quiet")
    if page == "docs/experiments.md":  # compares experiments of other pages
        project.call("dvc", "exp", "run", "--quiet", "-n", "fast", "-S", "model.kind=linear")
        project.call("git", "restore", ".")
    for command, shown in page_examples(page):
        if command.startswith(tuple(NOT_RUN)):
            continue
        for place, value in PLACES.get(page, {}).items():
            command = command.replace(place, value)
        command = command.replace("http://127.0.0.1:8000", address)
        printed = project.call("sh", "-c", command)
        assert missing(shown, printed, exact=exact) == [], printed
    if exact:
        for name, (experiment, path) in FIGURES.get(page, {}).items():
            image = project.call("git", "hash-object", f"docs/images/{name}.png")
            assert (
                project.call("git", "rev-parse", f"{revision(project, experiment)}:{path}") == image
            )


def revision(project: Clone, experiment: str) -> str:
    """The commit of an experiment."""
    (row,) = (
        line.split()
        for line in project.call("git", "for-each-ref", "refs/exps").splitlines()
        if line.endswith(f"/{experiment}")
    )
    return row[0]


def test_report_shows_the_images_of_a_selected_cell(
    project: Clone, exact: bool, browser: "Browser"
) -> None:
    project.call("git", "reset", "--quiet", "--hard", "start")
    project.call("dvc", "repro", "--quiet")
    project.call("make", "report")
    page = open_context(browser, viewport={"width": 1280, "height": 590}).new_page()
    page.goto((project.path / "reports/report.html").as_uri())
    cell = page.locator('.matrix button[data-label="9"][data-predicted="4"]')
    count = int(cell.inner_text())
    cell.click()
    status = page.locator("#status").inner_text()
    assert status == f"{count} images: label 9, predicted as 4"
    page.get_by_role("heading", name="Errors").evaluate(
        "heading => window.scrollTo(0, heading.getBoundingClientRect().top + window.scrollY - 34)"
    )
    page.mouse.move(0, 0)
    if "SCREENSHOT" in os.environ:
        page.screenshot(path=ROOT / os.environ["SCREENSHOT"])
    page.context.close()
    table = pd.read_csv(project.path / "reports/confusion.csv")
    (expected,) = table[(table["label"] == 9) & (table["predicted"] == 4)]["count"]
    assert count == expected


def write_letters(project: Clone) -> None:
    """Write the example dataset of docs/datasets.md, and its definition with the digests."""
    rng = np.random.default_rng(1)
    arrays: dict[str, Any] = {}
    for split, count in {"train": 3_000, "test": 600}.items():
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 32, 32), np.uint8)
        arrays[f"y_{split}"] = (np.arange(count) % 3).astype(np.uint8)
    (project.path / "letters").mkdir()
    np.savez(project.path / "letters/letters.npz", **arrays)
    (definition,) = code_blocks("docs/datasets.md", "yaml")
    entry = YAML(typ="safe", pure=True).load(definition)
    kinds = {"x": "images", "y": "labels"}
    entry["sha256"] = {
        f"{name[2:]}_{kinds[name[0]]}": digest(array) for name, array in arrays.items()
    }
    write_entry(project.path, "letters", entry)


def write_photos(project: Clone) -> None:
    """Write the files of docs/handing-over.md: test images of MNIST, and two that are no images."""
    images = np.load(project.path / "data/raw/test_images.npy")
    Image.fromarray(images[0]).save(project.path / "seven.png")
    names = {
        "mnist.png": "unchanged",
        "noise.png": "noise",
        "shadow.png": "gradient lighting",
        "transparent.png": "RGBA, transparent",
        "turned.jpg": "EXIF rotation",
    }
    (project.path / "photos").mkdir()
    for number, (name, variant) in enumerate(names.items()):
        (path,) = photos.write(project.path / f"photos-{number}", variant, images[[number]])
        path.rename(project.path / "photos" / name)
    for name in ("photos/notes.jpg", "notes.txt"):
        (project.path / name).write_text("notes\n")


def test_every_reason_is_about_a_command() -> None:
    commands = [command for page in PAGES for command, _ in page_examples(page)]
    assert [start for start in NOT_RUN if not any(c.startswith(start) for c in commands)] == []
    assert {page for page in ELSEWHERE if page not in PAGES} == set()


def test_missing_lines_are_found() -> None:
    printed = "accuracy 0.98  12 errors\nother\n  a | b\n"
    assert missing(["accuracy 0.98 12 errors", "[...]", "a | b"], printed, exact=True) == []
    assert missing(["accuracy 0.97 12 errors"], printed, exact=True) != []
    assert missing(["accuracy 0.97 12 errors"], printed, exact=False) == []
    assert missing(["a | b", "other"], printed, exact=False) == ["other"]
    assert missing(["accuracy 0.9..."], printed, exact=True) == []
    assert missing(["accuracy 0.7..."], printed, exact=True) != []
    assert missing(["precision 0.98"], printed, exact=False) != []
