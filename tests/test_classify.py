"""The command that classifies image files."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wcwidth
from PIL import Image

from stages import fetch
from stages.lib.models.runtime import read_model
from stages.lib.stage import StageError
from tests.helpers import CLASSES, HEIGHT, ROOT, WIDTH, described, small_mlp, tiny_arrays
from tools import classify

IMAGES = tiny_arrays()["test_images"][:12]
Call = Callable[..., None]


def write_model(path: Path, names: list[str] = CLASSES, name: str = "tiny") -> None:
    path.parent.mkdir(exist_ok=True)
    dataset, scaling = described()
    path.write_bytes(small_mlp(dataset | {"classes": names, "name": name}, scaling))


@pytest.fixture
def call(project: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """A model, its data and a folder of images `mine`; call the tool with these arguments."""
    fetch.main()
    write_model(Path("data/model.onnx"))
    Path("mine").mkdir()
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(f"mine/{number}.png")

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["classify", *map(str, arguments)])
        classify.main()

    return run


def expected() -> np.ndarray:
    return read_model(Path("data/model.onnx"))(IMAGES)


def test_csv_has_exact_model_probabilities(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    call("mine", "--csv")
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["file", "class", "confidence", *CLASSES]
    assert [row[0] for row in rows[1:]] == [f"mine/{number}.png" for number in range(12)]
    found = np.array([[np.float32(cell) for cell in row[3:]] for row in rows[1:]])
    np.testing.assert_array_equal(found, expected())
    assert [row[1] for row in rows[1:]] == [CLASSES[i] for i in expected().argmax(axis=1)]
    assert [np.float32(row[2]) for row in rows[1:]] == [*expected().max(axis=1)]


@pytest.mark.parametrize("top", [1, 2, 3])
def test_top_classes_are_printed_per_file(
    call: Call, capsys: pytest.CaptureFixture[str], top: int
) -> None:
    call("mine/3.png", "--top", top)
    header, line, prepared, *_ = capsys.readouterr().out.splitlines()
    order = expected()[3].argsort()[::-1][:top]
    ranked = [word for i in order for word in (CLASSES[i], f"{expected()[3][i]:.4f}")]
    assert line.split()[: 2 * top + 1] == ["mine/3.png", *ranked]
    assert header.split()[:3] == ["file", "class", "confidence"]
    assert prepared == "prepared mine/3.png: unchanged"


@pytest.mark.parametrize("top", [0, 4])
def test_top_out_of_range_is_rejected(call: Call, top: int) -> None:
    with pytest.raises(StageError, match=f"--top: expected 1 to 3 classes, found {top}"):
        call("mine", "--top", top)


def test_columns_align_with_wide_characters(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(Path("data/model.onnx"), ["티셔츠", "靴", "bag"])
    Path("mine/0.png").rename("mine/사진.png")
    call("mine")
    lines = capsys.readouterr().out.splitlines()[:13]
    columns = [wcwidth.width(re.split(r"  [01]\.\d{4}", line)[0]) for line in lines[1:]]
    assert len(set(columns)) == 1
    assert wcwidth.width(lines[0][: lines[0].index("  confidence")]) == columns[0]


def test_files_with_equal_steps_share_a_line(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    inverted = np.full((HEIGHT, WIDTH), 250, np.uint8)
    inverted[2:4, 1:4] = 50
    for number in range(4, 9):
        Image.fromarray(inverted).save(f"mine/{number}.png")
    call("mine")
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert lines[0] == "prepared mine/0.png, mine/1.png, mine/2.png and 4 more: unchanged"
    assert lines[1] == "prepared mine/4.png, mine/5.png, mine/6.png and 2 more: inverted"


@pytest.mark.parametrize("others", [0, 2])
def test_other_files_in_a_folder_are_counted(
    call: Call, capsys: pytest.CaptureFixture[str], others: int
) -> None:
    for number in range(others):
        Path(f"mine/note{number}.txt").touch()
    Path("mine/.hidden").touch()
    call("mine", "--csv")
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 + 12
    skipped = [line for line in printed.err.splitlines() if "skipped" in line]
    assert skipped == (["mine: skipped files that are not images: 2"] if others else [])


def test_invalid_files_do_not_stop_the_others(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each invalid path is printed, and all other files are classified."""
    Path("mine/2.png").write_text("<html>")
    Path("mine/5.png").write_bytes(Path("mine/6.png").read_bytes()[:60])
    Path("empty").mkdir()
    with pytest.raises(StageError, match="unreadable paths: 4"):
        call("mine", "empty", "absent.png", "--csv")
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 + 10
    named = [line.partition(":")[0] for line in printed.err.splitlines()]
    assert {"mine/2.png", "mine/5.png", "empty", "absent.png"} <= {*named}


def test_hidden_and_non_image_files_are_skipped(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine/.hidden.png").write_text("")
    Path("mine/notes.txt").write_text("")
    Path("mine/sub").mkdir()
    Path("mine/0.png").rename("mine/sub/0.PNG")
    call("mine", "--csv")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 12
    assert lines[-1].startswith("mine/sub/0.PNG,")


def test_unusual_images_are_marked(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    Path("noise").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (5, HEIGHT, WIDTH), np.uint8)
    for number, image in enumerate(noise):
        Image.fromarray(image).save(f"noise/{number}.png")
    call("noise")
    printed = capsys.readouterr()
    assert sum(line.endswith("  unusual") for line in printed.out.splitlines()) >= 4
    assert "images are unlike the training data (Tiny)" in printed.err


def test_missing_training_data_is_reported_in_one_line(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the model's own data, there are no warnings about unusual images."""
    write_model(Path("other.onnx"), name="other")
    call("mine", "--model", "other.onnx")
    printed = capsys.readouterr()
    assert printed.err == "unusual images cannot be flagged: data/raw does not contain Tiny\n"
    assert "unusual" not in printed.out


@pytest.mark.parametrize("count", [1, 5, 12])
def test_show_draws_files_and_model_inputs(
    call: Call, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    names = ["a class with a name that is far too long for any figure", "<b>$x$</b>", "c"]
    write_model(Path("data/model.onnx"), names)
    Image.new("RGBA", (90, 40), (200, 0, 0, 100)).save("mine/0.png")
    call(*(f"mine/{number}.png" for number in range(count)), "--show", "shown.png")
    with Image.open("shown.png") as figure:
        assert figure.height > 150 * (1 + count // 4)
    assert f"shown.png: {count} of {count} files" in capsys.readouterr().err


def test_at_most_twenty_files_are_drawn(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    """All files are classified."""
    call("mine", "mine", "--show", "shown.png", "--csv")
    printed = capsys.readouterr()
    assert "shown.png: 20 of 24 files" in printed.err
    assert len(printed.out.splitlines()) == 1 + 24


def test_imports_neither_tensorflow_nor_dvc(call: Call) -> None:
    """Errors are printed in one line each."""
    code = """
import sys
from tools import classify
from stages.lib.stage import run
try:
    run(classify.main)
finally:
    heavy = {"tensorflow", "keras", "dvc", "sklearn", "matplotlib"} & {*sys.modules}
    assert not heavy, heavy
"""

    def process(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True
        )

    found = process("mine")
    assert (found.returncode, len(found.stdout.splitlines())) == (0, 14), found.stderr
    missing = process("mine", "--model", "none.onnx")
    assert missing.returncode == 1
    assert missing.stdout == ""
    assert missing.stderr.count("\n") == 1
    assert "none.onnx: no such file" in missing.stderr
    Path("broken.onnx").write_text("<html>")
    broken = process("mine", "--model", "broken.onnx")
    assert (broken.returncode, broken.stderr.count("\n")) == (1, 1)
    Path("mine/0.png").write_text("")
    invalid = process("mine")
    assert invalid.returncode == 1
    assert "Traceback" not in invalid.stderr


def test_confidences_are_scaled_by_temperature(
    call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("reports").mkdir(exist_ok=True)
    Path("reports/scores.json").write_text(json.dumps({"temperature_scaling": {"temperature": 4}}))
    call("mine/1.png", "--csv")
    (row,) = list(csv.reader(io.StringIO(capsys.readouterr().out)))[1:]
    assert float(row[2]) < expected()[1].max()
