"""The report, on two datasets of classes with hostile names, and in Chromium without a network."""

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Request, expect

from stages import evaluate, fetch, normalize
from stages.lib.stage import StageError
from tests.helpers import (
    BROWSER_TIMEOUT,
    Clone,
    new_clone,
    open_context,
    read_entry,
    read_yaml,
    tiny_arrays,
    write_entry,
)
from tools.lib import charts, reporting, sections
from tools.lib.records import Record, read_records

NAMES = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", 'عربى, "한글" & \'']
REPORT = ["python", "-m", "tools.report"]
CELL = '.matrix button[data-label="0"][data-predicted="1"]'  # has two errors in the workspace


def predict(seed: int) -> None:
    """Save predictions with 9 errors, among them images 0 and 1 of each class, and a history."""
    labels = tiny_arrays()["test_labels"]
    guess = labels.copy()
    for label in range(3):
        guess[np.flatnonzero(labels == label)[: 2 + seed]] = (label + 1) % 3
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.6, 1, (len(labels), 1))
    probabilities = np.where(np.eye(3)[guess] == 1, confidence, (1 - confidence) / 2)
    np.savez(
        "data/predictions.npz",
        parameters=np.array(275),
        multiply_adds=np.array(264),
        validation_labels=labels,
        validation_probabilities=probabilities.astype(np.float32),
        test_labels=labels,
        test_probabilities=probabilities.astype(np.float32),
    )
    Path("data/model.onnx").write_bytes(b"no report reads it")
    Path("data/history.csv").write_text(
        "epoch,loss,accuracy,val_loss,val_accuracy\n1,0.9,0.5,1.0,0.4\n2,0.5,0.7,0.8,0.6\n"
    )


def finish(clone: Clone, dataset: str, seed: int, tag: str) -> None:
    """Make a run and commit it as a revision; its figures are those of the shipped run."""
    clone.edit({"dataset": dataset, "train.seed": seed})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone.path)
        fetch.main()
        normalize.main()
        predict(seed)
        evaluate.main()
    clone.call("dvc", "commit", "--force", "--quiet")
    clone.call("git", "add", "-A")
    clone.call("git", "commit", "-qm", tag)
    clone.call("git", "tag", tag)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A project with the revisions other (dataset tiny2), first and second, which is HEAD."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "tools").mkdir()
    clone = new_clone(folder / "zweite Übung", folder / "tools")
    for name in ("tiny", "tiny2"):
        write_entry(clone.path, name, read_entry(clone.path, name) | {"classes": NAMES})
    finish(clone, "tiny2", 0, "other")
    finish(clone, "tiny", 0, "first")
    finish(clone, "tiny", 1, "second")
    return clone


@pytest.fixture(scope="module")
def single(clone: Clone) -> Path:
    """The report of the workspace."""
    line = clone.call(*REPORT)
    assert re.fullmatch(r"reports/report.html: \d\.\d MB; open it in a browser\n", line)
    return clone.path / "reports/report.html"


@pytest.fixture(scope="module")
def several(clone: Clone) -> Path:
    """The report of three runs, of which two share their test images."""
    clone.call(*REPORT, "first", "workspace", "other", "--out", "reports/three.html")
    path = clone.path / "reports/three.html"
    return path.rename(clone.path.parent / "three.html")


def embedded(page: Path) -> Any:  # noqa: ANN401  # the page's JSON
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert found
    return json.loads(found[1])


def test_report_of_noise_is_smaller_than_5_mb() -> None:
    """Noise does not compress."""
    noise = np.random.default_rng(0).integers(0, 256, (reporting.PIXELS // 784, 28, 28), np.uint8)
    address, _ = reporting.draw_atlas(noise)
    assert len(address) > reporting.PIXELS  # nothing is left out
    assert len(address) + len(charts.read_vega()) < 4_500_000  # and half a megabyte for the rest


def test_report_is_reproducible(clone: Clone, single: Path) -> None:
    """It contains no time, host or path, and its order is fixed."""
    again = Clone(clone.path, clone.env | {"PYTHONHASHSEED": "7", "TZ": "Asia/Seoul"})
    again.call(*REPORT, "--out", "../again.html")
    assert (clone.path.parent / "again.html").read_bytes() == single.read_bytes()
    assert str(clone.path) not in single.read_text()
    assert clone.changed() == set()


def test_workspace_report_imports_no_dvc_or_tensorflow(clone: Clone) -> None:
    code = (
        "import sys, tools.report; from tools.lib.records import read_records;"
        "from tools.lib.reporting import render; sys.argv = ['report'];"
        "render(read_records(['workspace']));"
        "print({'dvc', 'tensorflow', 'keras', 'sklearn'} & {*sys.modules})"
    )
    assert clone.call("python", "-c", code) == "set()\n"


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the sources of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        tag, attributes = self.found[-1] if self.found else ("", {})
        if tag in {"script", "style"} and not attributes and self.cdata_elem:
            self.sources.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_class_names_are_escaped(single: Path) -> None:
    elements = Elements(single.read_text()).found
    assert [tag for tag, _ in elements].count("script") == 3
    assert {str(attributes["src"])[:15] for tag, attributes in elements if tag == "img"} == {
        "data:image/png;"
    }
    assert not any(key.startswith("on") for _, attributes in elements for key in attributes)
    assert embedded(single)["sets"][0]["classes"] == NAMES


def test_policy_allows_only_own_scripts_and_styles(single: Path) -> None:
    """The content security policy lists their hashes."""
    text = single.read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    sources = Elements(text).sources
    assert len(sources) == 3
    for source in sources:
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    addresses = {
        str(value)
        for _, attributes in Elements(text).found
        for key, value in attributes.items()
        if key in {"src", "href", "action", "srcset"}
    }
    assert {
        address for address in addresses if address[:5] != "data:" and address[0] != "#"
    } == set()


def test_report_contains_all_misclassified_images(single: Path) -> None:
    data = embedded(single)
    (images,), (run,) = data["sets"], data["runs"]
    assert images["index"] == [*range(30)]  # few enough
    wrong = np.array(run["predicted"]) != images["labels"]
    assert wrong.sum() == 9
    _, encoded = images["atlas"].split(",")
    atlas = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    height, width = images["height"], images["width"]
    shown = tiny_arrays()["test_images"].astype(float)
    low, high = shown.min(), shown.max()
    for i in (0, 29):
        cell = atlas[:height, i * width : (i + 1) * width]
        assert np.corrcoef(cell.ravel(), shown[i].ravel())[0, 1] < -0.999  # drawn dark on light
    assert low < high


def test_runs_share_images_only_if_datasets_match(several: Path) -> None:
    data = embedded(several)
    assert [run["name"] for run in data["runs"]] == ["first", "workspace", "other"]
    assert [run["set"] for run in data["runs"]] == [0, 0, 1]
    text = several.read_text()
    assert "Accuracy of the first minus that of the second" in text
    differing = text[text.index("Parameters that differ") : text.index("equal parameters")]
    assert re.findall('<th scope="row">(.*?)</th>', differing) == ["dataset", "train.seed"]


def test_report_has_commands_that_reproduce_the_run(clone: Clone, single: Path) -> None:
    head = clone.call("git", "rev-parse", "HEAD").strip()
    assert f"git checkout {head[:12]}\ndvc repro" in single.read_text()


@pytest.mark.parametrize(
    ("revision", "line"),
    [
        ("missing", "report: missing: not an experiment, branch, tag or commit"),
        ("HEAD~3", "report: HEAD~3: cannot read data/raw/dataset.json"),
    ],
)
def test_invalid_revisions_are_rejected_in_one_line(clone: Clone, revision: str, line: str) -> None:
    output = clone.call(*REPORT, revision, "--out", "../none.html", code=1)
    assert output.startswith(line)
    assert output.count("\n") == 1
    assert not (clone.path.parent / "none.html").exists()


def test_changed_and_missing_files_are_rejected(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone.path)
    for name, line in {
        "reports/classes.csv": "workspace: not a finished run: reports/classes.csv",
        "data/predictions.npz": "workspace: not a finished run: data/predictions.npz",
        "data/raw/test_images.npy": "workspace: not a finished run: data/raw/test_im",
    }.items():
        path = clone.path / name
        content = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(StageError) as error:
            reporting.render(read_records(["workspace"]))
        assert str(error.value).startswith(f"{line}")
        path.unlink()
        with pytest.raises(FileNotFoundError) as absent:
            reporting.render(read_records(["workspace"]))
        assert absent.value.filename == name
        path.write_bytes(content)
    (clone.path / "dvc.lock").rename(clone.path / "dvc.lock.bak")
    missing = "report: dvc.lock: no such file; run dvc repro to create missing outputs\n"
    assert clone.call(*REPORT, code=1) == missing
    (clone.path / "dvc.lock.bak").rename(clone.path / "dvc.lock")


def fabricate(labels: np.ndarray, predicted: np.ndarray, classes: int) -> Record:
    """A run without files."""
    record = Record("run", "", "", lambda path: Path(path).read_bytes())
    names = [f"class {i}" for i in range(classes)]
    vars(record).update(labels=labels, probabilities=np.eye(classes)[predicted])
    vars(record)["dataset"] = {"classes": names, "levels": [0, 255], "background": 0}
    return record


def test_large_matrix_shows_classes_with_most_errors() -> None:
    labels = np.arange(512) % 256
    predicted = labels.copy()
    predicted[[7, 200]] = 9, 9
    text = sections.html(sections.matrix(fabricate(labels, predicted, 256)))
    assert "Of 256 classes, the 20 with the most errors are shown." in text
    assert text.count("<tr>") == 21
    assert 'aria-label="1: label class 7, predicted as class 9"' in text
    assert "Of 256" not in sections.html(sections.matrix(fabricate(labels % 3, labels % 3, 3)))


def test_sample_has_all_errors_and_every_class() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 10, 5_000)
    predicted = np.where(rng.random(5_000) < 0.1, (labels + 1) % 10, labels)
    record = fabricate(labels, predicted, 10)
    chosen = reporting.choose_images([record], 3_000)
    errors = np.flatnonzero(labels != predicted)
    assert {*errors} <= {*chosen}
    assert len(chosen) == len(errors) + 1_000
    correct = np.bincount(labels[np.setdiff1d(chosen, errors)])
    assert correct.min() >= 99
    few = reporting.choose_images([record], 100)  # a file has a limit
    assert record.correct[few].sum() == 20
    assert len(few) == 100


@pytest.mark.parametrize("shape", [(28, 28), (9, 17, 3), (200, 100), (3, 300, 3)])
def test_images_are_scaled_to_at_most_64_pixels(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(1).integers(0, 256, (70, *shape), np.uint8)
    drawn = reporting.drawable(images, {"levels": [0, 255], "background": 255})
    assert max(drawn.shape[1:3]) <= 64
    assert drawn.shape[3:] == shape[2:]
    address, columns = reporting.draw_atlas(drawn)
    atlas = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))
    row, column = divmod(69, columns)
    height, width = drawn.shape[1:3]
    cell = atlas[row * height : (row + 1) * height, column * width : (column + 1) * width]
    assert (cell == drawn[69]).all()


def test_chart_with_too_many_cells_is_omitted(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone.path)
    record = Record("workspace", "", "", lambda path: Path(path).read_bytes())
    plots = read_yaml(Path("dvc.yaml"))["plots"]
    assert len(charts.fill_charts([record], plots)) == 6
    monkeypatch.setattr(charts, "MAX_ROWS", 8)
    titles = [chart["title"]["text"] for chart in charts.fill_charts([record], plots)]
    assert "Confusion matrix (test)" not in titles
    assert "Recall by class (test)" in titles


class Open(Protocol):
    """Opens a file in a new page."""

    def __call__(self, path: Path, *, quiet: bool = True, **media: Any) -> Page: ...  # noqa: ANN401


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Open a file without a network; it must neither request anything nor, if quiet, print."""
    context = open_context(browser, offline=True, accept_downloads=True)
    expect.set_options(timeout=BROWSER_TIMEOUT)
    faults: list[str] = []

    def check(request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            faults.append(request.url)

    def start(path: Path, *, quiet: bool = True, **media: Any) -> Page:  # noqa: ANN401
        page = context.new_page()
        page.on("request", check)
        page.on("requestfailed", lambda request: faults.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        if quiet:
            page.on("console", lambda message: faults.append(message.text))
        page.emulate_media(**media)
        page.goto(path.as_uri())
        return page

    yield start
    context.close()
    assert faults == []


def captions(page: Page) -> list[str]:
    return page.locator(".tile b").all_text_contents()


def test_matrix_cell_shows_its_images(opened: Open, single: Path) -> None:
    page = opened(single)
    assert len(captions(page)) == 9
    page.locator(CELL).click()
    expect(page.locator("#status")).to_have_text(
        f"3 images: label {NAMES[0]}, predicted as {NAMES[1]}"
    )
    assert captions(page) == [f"{NAMES[0]} → {NAMES[1]}"] * 3
    confidences = [float(text) for text in page.locator(".tile span").all_text_contents()]
    assert confidences == sorted(confidences, reverse=True)
    pixels = page.locator(".tile canvas").first.evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, 5, 6).data]"
    )
    data = embedded(single)
    wrong = [
        i for i in range(30) if data["sets"][0]["labels"][i] == 0 != data["runs"][0]["predicted"][i]
    ]
    best = max(wrong, key=lambda i: data["runs"][0]["confidence"][i])
    levels = np.array(pixels).reshape(6, 5, 4)[:, :, 0]
    image = tiny_arrays()["test_images"][best]
    assert np.corrcoef(levels.ravel(), image.ravel())[0, 1] < -0.999


def test_class_and_bin_show_their_images(opened: Open, single: Path) -> None:
    page = opened(single)
    page.locator('td button[data-predicted="1"][data-wrong]').click()
    assert captions(page) == [f"{NAMES[0]} → {NAMES[1]}"] * 3
    button = page.locator("button[data-bin]").last
    button.click()
    assert len(captions(page)) == int(button.get_attribute("data-total") or 0)
    page.get_by_text("Likely label errors").click()
    assert page.locator("#order").input_value() == "quality"
    assert len(captions(page)) == 9


def test_keys_navigate_open_mark_and_close(opened: Open, single: Path, tmp_path: Path) -> None:
    page = opened(single)
    page.locator(CELL).focus()
    page.keyboard.press("ArrowUp")  # the heading of the column
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text(f"images: predicted as {NAMES[1]}")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator(".tile").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("m")
    page.keyboard.press("Enter")
    expect(page.locator("#place")).to_have_text("2 of 3")
    expect(page.locator("#mark")).to_be_checked()
    page.locator("#note").fill('a "1", surely')
    page.locator("#close").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#place")).to_have_text("1 of 3")
    expect(page.locator("#mark")).not_to_be_checked()
    page.keyboard.press("m")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator(".tile").first).to_be_focused()
    assert page.locator(".tile.marked").count() == 2
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "marked.csv")
    with (tmp_path / "marked.csv").open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert [row["note"] for row in rows] == ['a "1", surely', ""]
    assert {(row["run"], row["label"], row["predicted"]) for row in rows} == {
        ("workspace", NAMES[0], NAMES[1])
    }
    data, labels = embedded(single), tiny_arrays()["test_labels"]
    assert all(labels[int(row["index"])] == 0 for row in rows)
    assert float(rows[0]["confidence"]) in data["runs"][0]["confidence"]


def test_runs_can_be_switched(opened: Open, several: Path) -> None:
    page = opened(several)
    assert len(captions(page)) == 6
    page.locator("#switch button").nth(1).click()
    assert len(captions(page)) == 9
    page.get_by_role("button", name="Correct in first").click()
    assert len(captions(page)) == 3
    page.locator(".tile").first.click()
    expect(page.locator("#facts")).to_contain_text("in first")
    assert "in other" not in page.locator("#facts").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_window_does_not_scroll_horizontally(
    opened: Open, several: Path, scheme: str
) -> None:
    page = opened(several, color_scheme=scheme)
    page.set_viewport_size({"width": 320, "height": 640})
    page.locator(".plot svg").nth(5).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.locator(".tile").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_charts_are_drawn(opened: Open, several: Path) -> None:
    page = opened(several)
    charts = page.locator(".plot svg")
    charts.nth(5).wait_for()
    for i in range(6):
        box = charts.nth(i).bounding_box()
        assert box
        assert min(box["width"], box["height"]) > 100
        assert charts.nth(i).locator("path").count() > 3


def test_report_can_be_printed(opened: Open, several: Path) -> None:
    page = opened(several, media="print")
    page.locator(".plot svg").nth(5).wait_for()
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.locator(".run").evaluate_all("runs => runs.every(run => run.offsetHeight > 0)")


def test_tables_and_figures_require_no_javascript(browser: Browser, single: Path) -> None:
    context = open_context(browser, offline=True, java_script_enabled=False)
    page = context.new_page()
    page.goto(single.as_uri())
    assert page.get_by_role("table").count() == 5
    assert page.locator(".figures img").count() == 9
    assert page.get_by_text("need JavaScript").first.is_visible()
    assert not page.locator("#gallery").is_visible()
    context.close()


def test_dvc_plots_work_offline(shipped: Clone, opened: Open) -> None:
    """Without the page that make writes, they fall back to one that loads scripts from a CDN."""
    shipped.call("python", "-m", "tools.plots_page")
    shipped.call("dvc", "config", "--local", "plots.html_template", "offline.html")
    shipped.call("git", "commit", "--allow-empty", "-qm", "Second")
    assert shipped.changed() == set()
    written = shipped.path / "dvc_plots/index.html"
    for command in (["show"], ["diff", "HEAD~1", "HEAD"]):
        shipped.call("dvc", "plots", *command)
        charts = opened(written, quiet=False).locator("main svg.marks")
        charts.nth(5).wait_for()
        for i in range(6):
            box = charts.nth(i).bounding_box()
            assert box
            assert min(box["width"], box["height"]) > 100
    shipped.call("make", "clean")  # which must not delete the page that DVC uses
    assert (shipped.path / ".dvc/offline.html").exists()
    shipped.call("git", "clean", "-qfdX")
    shipped.call("dvc", "plots", "show")
    assert 'src="https://cdn.jsdelivr.net' in written.read_text()
