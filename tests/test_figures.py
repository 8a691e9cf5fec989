"""Contents of all figures; texts neither overlap nor are cut off."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from io import BytesIO
from itertools import combinations
from pathlib import Path
from shutil import copy
from typing import cast

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import vl_convert
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from stages.lib.results import figures
from tests.helpers import ROOT, shipped_entries

CATALOG = shipped_entries()
FASHION: list[str] = CATALOG["fashion_mnist"]["classes"]
DIGITS: list[str] = CATALOG["mnist"]["classes"]
LONG = [f"{letter} has a longer name" for letter in "abcdefghij"]
EPOCHS = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "loss": [0.5, 0.3, 0.2],
        "accuracy": [0.8, 0.9, 0.95],
        "val_loss": [0.6, 0.5, 0.4],
        "val_accuracy": [0.7, 0.8, 0.85],
    }
)


def images(count: int) -> np.ndarray:
    levels: np.ndarray = np.random.default_rng(0).integers(0, 256, (count, 28, 28)).astype(np.uint8)
    return levels


def counts(classes: int) -> np.ndarray:
    """The confusion matrix of a good model: 960 to 999 images of each class are correct."""
    matrix: np.ndarray = np.random.default_rng(0).integers(0, 40, (classes, classes))
    matrix[np.diag_indices(classes)] += 960
    return matrix


def table(names: Sequence[str]) -> pd.DataFrame:
    shares = np.linspace(0.7, 0.99, len(names))
    scores = {
        "recall": shares,
        "recall_low": shares - 0.03,
        "recall_high": shares + 0.005,
        "precision": shares - 0.1,
    }
    return pd.DataFrame({"class": names, **scores, "f1": shares - 0.05})


def bins() -> pd.DataFrame:
    """The reliability table of an overconfident model."""
    high = np.arange(4, 16) / 15
    table = pd.DataFrame(
        {
            "low": high - 1 / 15,
            "high": high,
            "images": 4 ** np.arange(12),
            "confidence": high - 0.03,
        }
    )
    return table.assign(accuracy=high - 0.1, accuracy_low=high - 0.2, accuracy_high=high - 0.05)


def samples(names: Sequence[str]) -> Figure:
    return figures.samples("Samples", images(len(names)), names, levels=(0, 255), background=0)


def errors(names: Sequence[str]) -> Figure:
    return draw_errors("Errors", images(len(names)), names, [*names[1:], *names[:1]])


def draw_errors(
    title: str, drawn: np.ndarray, labels: Sequence[str], predicted: Sequence[str]
) -> Figure:
    confidence = np.linspace(0.4, 1, len(drawn))
    return figures.errors(
        title, drawn, labels, predicted, confidence, levels=(0, 255), background=0
    )


def confusion(names: Sequence[str]) -> Figure:
    return figures.confusion("Confusion", counts(len(names)), names)


def classes(names: Sequence[str]) -> Figure:
    return figures.classes("Classes", table(names))


def pairs(names: Sequence[str]) -> Figure:
    return figures.pairs(
        "Pairs", [(first, second, 9) for first, second in combinations(names, 2)][:10]
    )


DRAWN = pytest.mark.parametrize("draw", [samples, errors, confusion, classes, pairs])


# DejaVu Sans lacks these letters; DejaVu Sans Mono and STIX, which come with matplotlib, have them.
OTHER_SCRIPT = ["\U0001d670\U0001d671", "\U0001d672", "\U0001d673"]
SHIPPED_FONTS = Path(mpl.get_data_path(), "fonts/ttf")
InstallFont = Callable[[str, str], object]


@pytest.fixture
def install_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InstallFont]:
    """Install one of matplotlib's fonts under another file name, with no other font installed."""
    find = font_manager.findSystemFonts
    monkeypatch.setattr(
        font_manager, "findSystemFonts", lambda paths=None: find(paths or [str(tmp_path)])
    )
    known = font_manager.fontManager.ttflist
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*known])

    def forget() -> None:
        for function in (figures._face, figures._add_family, figures._undrawable, figures._advise):
            function.cache_clear()

    forget()
    with mpl.rc_context():
        yield lambda name, font: copy(SHIPPED_FONTS / f"{font}.ttf", tmp_path / f"{name}.ttf")
    forget()


@lru_cache(maxsize=1)
def render(figure: Figure) -> np.ndarray:
    """The pixels, shape (height, width, 3), uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3]  # type: ignore[no-untyped-call]


def colors(figure: Figure) -> np.ndarray:
    """Return the number of pixels of each color, unordered."""
    pixels = render(figure).astype(np.int64) @ [1 << 16, 1 << 8, 1]
    return np.unique(pixels, return_counts=True)[1]


def drawn_texts(figure: Figure) -> list[Text]:
    """Return all visible texts."""
    hidden: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not axes.axison or not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    found = [text for text in figure.findobj(Text) if isinstance(text, Text) and text not in hidden]
    return [text for text in found if text.get_text().strip() and text.get_visible()]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in drawn_texts(figure))


def boxes(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    """Bounding boxes of horizontal and vertical texts, in pixels."""
    render(figure)
    for text in drawn_texts(figure):
        if not text.get_rotation() % 90:
            yield text.get_text(), text.get_window_extent()


def assert_apart_and_inside(figure: Figure) -> None:
    placed = [*boxes(figure)]
    assert len(placed) > 1
    overlapping = [
        (a, b) for (a, box), (b, other) in combinations(placed, 2) if box.overlaps(other)
    ]
    assert overlapping == []
    outside = [
        a for a, box in placed if not (figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1)
    ]
    outside += [
        a for a, box in placed if not (figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1)
    ]
    assert outside == []


def test_user_matplotlibrc_has_no_effect(tmp_path: Path) -> None:
    code = (
        "from stages.lib.results import figures; import numpy as np, sys;"
        "figures.confusion('C', np.eye(2), ['a', 'b']).savefig("
        "sys.stdout.buffer, metadata={'Software': None})"
    )
    own = tmp_path / "matplotlibrc"
    own.write_text("savefig.dpi: 70\nimage.interpolation: bilinear\nfont.size: 20\n")
    theirs = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MATPLOTLIBRC": str(own)},
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    plain = BytesIO()
    figures.confusion("C", np.eye(2), ["a", "b"]).savefig(plain, metadata={"Software": None})
    assert theirs.stdout == plain.getvalue()


@DRAWN
@pytest.mark.parametrize("names", [["no", "yes"], FASHION, LONG], ids=["two", "fashion", "long"])
def test_names_are_complete_and_do_not_overlap(
    draw: Callable[[Sequence[str]], Figure], names: list[str]
) -> None:
    """No text is cut off."""
    figure = draw(names)
    assert_apart_and_inside(figure)
    pixels = colors(figure)
    assert len(pixels) > 50
    assert pixels.max() < 0.98 * pixels.sum()
    assert all(name[:13] in words(figure) for name in names)
    assert draw.__name__.capitalize() in words(figure)


@DRAWN
def test_dollar_signs_in_names_are_drawn_literally(
    draw: Callable[[Sequence[str]], Figure],
) -> None:
    names = ["$$", "$1", "$a$"]
    figure = draw(names)
    render(figure)  # would fail on $$
    with_names = [text for text in drawn_texts(figure) if "$" in text.get_text()]
    assert all(name in words(figure) for name in names)
    assert not any(text.get_parse_math() for text in with_names)


@pytest.mark.parametrize(
    "draw",
    [
        lambda title: figures.samples(title, images(1), ["a"], levels=(0, 255), background=0),
        lambda title: figures.history(title, EPOCHS, "test"),
        lambda title: figures.confusion(title, counts(2), ["a", "b"]),
        lambda title: figures.classes(title, table(["a", "b"])),
        lambda title: figures.calibration(title, bins()),
        lambda title: figures.pairs(title, [("a", "b", 1)]),
    ],
    ids=["samples", "history", "confusion", "classes", "calibration", "pairs"],
)
def test_dollar_signs_in_titles_are_drawn_literally(draw: Callable[[str], Figure]) -> None:
    """$$ is invalid math and $x^2$ is valid; a backslash before a dollar sign stays."""
    for name in ("$$: a", "$1 and $x^2$2", r"\$ $$"):
        figure = draw(name)
        render(figure)  # would fail on $$
        title = next(text for text in drawn_texts(figure) if text.get_wrap())
        assert title._preprocess_math(title.get_text()) == (name, False)  # type: ignore[attr-defined]


@pytest.mark.parametrize("names", [FASHION, LONG], ids=["fashion", "long"])
def test_slanted_names_are_a_line_height_apart(
    names: list[str],
) -> None:
    figure = confusion(names)
    render(figure)
    labels = figure.axes[0].get_xticklabels()
    positions = [label.get_transform().transform(label.get_position())[0] for label in labels]
    for label in labels:
        slant = math.radians(label.get_rotation())
        assert slant
        box = label.get_window_extent()
        assert figure.bbox.x0 <= box.x0
        assert figure.bbox.y0 <= box.y0
        label.set_rotation(0)
        height = label.get_window_extent().height
        assert np.diff(positions).min() * math.sin(slant) > height


@pytest.mark.parametrize("draw", [samples, errors])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_image_is_drawn_once(draw: Callable[[Sequence[str]], Figure], count: int) -> None:
    figure = draw(FASHION[:count])
    render(figure)
    shown = [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]
    np.testing.assert_array_equal(np.stack(shown), images(count))
    assert all(axes.images or not axes.axison for axes in figure.axes)


@pytest.mark.parametrize("shape", [(8, 80), (80, 8), (300, 400, 3)], ids=["wide", "tall", "large"])
def test_images_of_any_shape_fill_their_cells(
    shape: tuple[int, ...],
) -> None:
    names = FASHION[:4]
    figure = draw_errors("E", np.zeros((4, *shape), np.uint8), names, names[::-1])
    assert_apart_and_inside(figure)
    box = figure.axes[0].get_window_extent()
    assert box.width / box.height == pytest.approx(shape[1] / shape[0])
    assert max(box.width, box.height) > 0.7 * 1.75 * figure.dpi


@pytest.mark.parametrize("count", [1, 2, 4])
def test_title_above_few_images_is_not_cut_off(count: int) -> None:
    title = "Fashion-MNIST: 4 of 1,020 misclassified test images drawn at random"
    names = FASHION[:count]
    assert_apart_and_inside(draw_errors(title, images(count), names, names))


@pytest.mark.parametrize("draw", [samples, errors])
def test_long_names_above_images_do_not_overlap(draw: Callable[[Sequence[str]], Figure]) -> None:
    assert_apart_and_inside(draw([f"{name} that is worn in summer" for name in FASHION[:5]]))


@pytest.mark.parametrize("classes", [2, 3])
def test_title_above_small_matrix_is_not_cut_off(classes: int) -> None:
    title = "Fashion-MNIST: labels and predictions on test"
    assert_apart_and_inside(figures.confusion(title, counts(classes), DIGITS[:classes]))


def test_bars_have_room_next_to_long_names() -> None:
    assert_apart_and_inside(
        figures.pairs("P", [(f"{'a long name ' * 4}one", f"{'a long name ' * 4}two", 9)])
    )


@pytest.mark.parametrize(
    "figure",
    [
        pytest.param(figures.history("H", EPOCHS[:1], "test"), id="one epoch"),
        pytest.param(figures.history("H", EPOCHS, "test"), id="three epochs"),
        pytest.param(figures.pairs("P", [("a", "b", 1)]), id="one image"),
        pytest.param(figures.pairs("P", [("a", "b", 90)]), id="ninety images"),
    ],
)
def test_ticks_of_epochs_and_images_are_integers(figure: Figure) -> None:
    render(figure)
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == round(tick) for tick in ticks)


def drawn_halves(image: np.ndarray, levels: tuple[int, int], background: int) -> np.ndarray:
    """RGB of the upper and the lower half of an image as drawn, shape (2, 3)."""
    figure = figures.samples("S", image[None], ["half"], levels=levels, background=background)
    pixels = render(figure)[::-1].astype(int)  # from below, like the coordinates
    box = figure.axes[0].get_window_extent()
    middle = int((box.x0 + box.x1) / 2)
    return np.stack([pixels[int(box.y0 + box.height * up), middle] for up in (0.75, 0.25)])


@pytest.mark.parametrize(
    ("upper", "background", "drawn"),
    [
        pytest.param(255, 0, [0, 255], id="light on dark"),
        pytest.param(0, 255, [0, 255], id="dark on light"),
        pytest.param(255, 255, [255, 0], id="light object on light"),
    ],
)
def test_objects_are_drawn_dark_on_light(upper: int, background: int, drawn: list[int]) -> None:
    image = np.full((28, 28), 255 - upper, np.uint8)
    image[:14] = upper
    halves = drawn_halves(image, (0, 255), background)
    np.testing.assert_array_equal(halves, np.repeat(drawn, 3).reshape(2, 3))


@pytest.mark.parametrize(("levels", "background"), [((0, 16), 0), ((100, 116), 116), ((0, 1), 0)])
def test_gray_levels_are_drawn_from_white_to_black(
    levels: tuple[int, int], background: int
) -> None:
    image = np.full((28, 28), background, np.uint8)
    image[:14] = sum(levels) - background
    halves = drawn_halves(image, levels, background)
    np.testing.assert_array_equal(halves, [[0, 0, 0], [255, 255, 255]])


def test_colors_are_stretched_by_the_levels() -> None:
    image = np.zeros((28, 28, 3), np.uint8)
    image[:14], image[14:] = [255, 0, 51], [30, 60, 70]
    np.testing.assert_array_equal(drawn_halves(image, (0, 255), 0), image[[0, -1], 0])
    halves = drawn_halves(image, (20, 70), 20)
    np.testing.assert_array_equal(halves, [[255, 0, 158], [51, 204, 255]])


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3)], ids=["gray", "color"])
def test_images_of_a_single_level_are_drawn(shape: tuple[int, ...]) -> None:
    assert drawn_halves(np.full(shape, 9, np.uint8), (9, 9), 9).shape == (2, 3)


def test_error_shows_label_prediction_and_confidence() -> None:
    figure = draw_errors("E", images(2), ["Coat", "Bag"], ["Shirt", "Dress"])
    shown = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert shown == [["Coat", "Shirt 40%"], ["Bag", "Dress 100%"]]


def test_figure_without_errors_reads_none() -> None:
    figure = errors([])
    assert "none" in words(figure).lower()
    assert len(colors(figure)) > 10


def test_confusion_matrix_shows_counts_in_cells() -> None:
    figure = figures.confusion("C", np.array([[1_000, 20], [3, 0]]), ["a", "b"])
    cells = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert cells == {(0, 0): "1,000", (1, 0): "20", (0, 1): "3", (1, 1): "0"}
    assert figure.axes[0].get_xlabel().startswith("prediction\n")
    assert figure.axes[0].get_ylabel() == "label"


@pytest.mark.parametrize(("classes", "with_counts"), [(20, True), (21, False)])
def test_confusion_counts_are_shown_only_if_they_fit(classes: int, with_counts: bool) -> None:
    figure = figures.confusion("C", counts(classes), [str(i) for i in range(classes)])
    assert bool(figure.axes[0].texts) == with_counts


def test_all_100_classes_are_labeled() -> None:
    names = [f"no. {i}" for i in range(100)]
    figure = figures.confusion("C", counts(100), names)
    assert_apart_and_inside(figure)
    for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        assert [label.get_text() for label in labels] == names


def test_most_confused_of_256_classes_are_labeled() -> None:
    matrix = counts(256)
    matrix[100, 200] = matrix[202, 30] = 5_000  # 202 is too close to 200 for a label
    figure = figures.confusion("C", matrix, [f"class no. {i}" for i in range(256)])
    labeled = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert {"class no. 30", "class no. 100", "class no. 200"} <= {*labeled}
    assert "class no. 202" not in labeled
    assert f"{len(labeled)} of 256 classes are labeled" in words(figure)
    assert 50 < len(labeled) < 100
    assert_apart_and_inside(figure)
    assert max(figure.bbox.size) < 3_000


def cell_color(figure: Figure, row: int, column: int) -> np.ndarray:
    """The color near a cell's corner, away from its count."""
    pixels = render(figure)
    x, y = figure.axes[0].transData.transform((column - 0.4, row - 0.4))
    color: np.ndarray = pixels[len(pixels) - 1 - int(y), int(x)].astype(int)
    return color


def test_error_rates_below_one_percent_are_visible() -> None:
    figure = figures.confusion(
        "C", np.array([[995, 5, 0], [0, 1000, 0], [0, 1, 999]]), ["a", "b", "c"]
    )
    red, _, blue = cell_color(figure, 0, 1)
    assert red > blue + 50
    red, _, blue = cell_color(figure, 0, 0)
    assert blue > red + 50
    assert cell_color(figure, 0, 2).min() > 245
    paler, deeper = cell_color(figure, 2, 1), cell_color(figure, 0, 1)
    assert paler[2] > deeper[2] + 50


@pytest.mark.parametrize("right", [True, False])
def test_confusion_matrix_may_have_no_or_only_errors(right: bool) -> None:
    matrix = np.diag([5, 5, 5]) if right else np.array([[0, 9, 0], [0, 0, 9], [0, 0, 0]])
    figure = figures.confusion("C", matrix, FASHION[:3])
    assert len(colors(figure)) > 20


def test_class_figure_has_a_dot_per_class_and_score() -> None:
    figure = classes(FASHION)
    axes = figure.axes[0]
    dots = [np.asarray(points.get_offsets()) for points in axes.collections[2:]]
    for points, name in zip(dots, ("recall", "precision", "f1"), strict=True):
        np.testing.assert_allclose(points[:, 0], table(FASHION)[name])
        np.testing.assert_array_equal(points[:, 1], np.arange(10))
    assert [label.get_text() for label in axes.get_yticklabels()] == FASHION
    assert axes.yaxis_inverted()
    assert all(word in words(figure) for word in ("recall", "precision", "F1"))
    lines = np.asarray(cast(LineCollection, axes.collections[1]).get_segments())
    np.testing.assert_allclose(lines[:, :, 0], table(FASHION)[["recall_low", "recall_high"]])


def test_all_62_classes_have_a_line() -> None:
    figure = classes([f"no. {i}" for i in range(62)])
    assert len(figure.axes[0].get_yticklabels()) == 62
    assert max(figure.bbox.size) < 3_000


def test_classes_with_the_lowest_recall_have_a_line() -> None:
    """Of 256 classes, 64 are drawn."""
    scores = table([f"no. {i}" for i in range(256)]).iloc[::-1]  # the lowest recall is last
    figure = figures.classes("Classes", scores)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [f"no. {i}" for i in range(64)]
    assert "64 of 256 with the lowest recall" in words(figure)
    assert_apart_and_inside(figure)
    assert max(figure.bbox.size) < 3_000


def test_class_without_images_has_a_name_but_no_dot() -> None:
    scores = table(FASHION)
    scores.loc[3, ["recall", "recall_low", "recall_high", "precision", "f1"]] = np.nan
    scores.loc[5, ["recall", "recall_low", "recall_high"]] = np.nan
    figure = figures.classes("Classes", scores)
    assert_apart_and_inside(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == FASHION
    drawn = figure.axes[0].collections[2:]
    visible = [np.isfinite(np.ma.filled(dots.get_offsets(), np.nan)).all(axis=1) for dots in drawn]
    np.testing.assert_array_equal(np.flatnonzero(~visible[0]), [3, 5])
    np.testing.assert_array_equal(np.flatnonzero(~visible[1]), [3])


def test_calibration_figure_shows_every_bin() -> None:
    """Each bin has a dot with its interval, compared with the diagonal, and a histogram bar."""
    figure = figures.calibration("Confidence", bins())
    reliability, histogram = figure.axes
    diagonal, dots = (np.asarray(line.get_xydata()) for line in reliability.lines[:2])
    assert diagonal.tolist() == [[0, 0], [1, 1]]
    np.testing.assert_allclose(dots, bins()[["confidence", "accuracy"]])
    intervals = np.asarray(cast(LineCollection, reliability.collections[0]).get_segments())
    np.testing.assert_allclose(intervals[:, :, 1], bins()[["accuracy_low", "accuracy_high"]])
    bars = [
        (bar.get_x(), bar.get_height()) for bar in histogram.patches if isinstance(bar, Rectangle)
    ]
    np.testing.assert_allclose(bars, bins()[["low", "images"]])
    assert histogram.get_yscale() == "log"


def test_calibration_of_one_bin_is_drawn() -> None:
    figure = figures.calibration("Confidence", bins().tail(1))
    assert "Confidence" in words(figure)
    assert len(figure.axes) == 2


def test_pairs_have_bars_with_the_longest_on_top() -> None:
    figure = figures.pairs("P", [("Coat", "Shirt", 70), ("Bag", "Dress", 5)])
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)] == [70, 5]
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts] == ["70", "5"]
    first, second = (label.get_text().split() for label in axes.get_yticklabels())
    assert (first, second) == (
        ["Coat", "predicted", "as", "Shirt"],
        ["Bag", "predicted", "as", "Dress"],
    )


@pytest.mark.parametrize("confused", [[], [("Coat", "Shirt", 1)]])
def test_zero_or_one_pair_is_drawn(confused: list[tuple[str, str, int]]) -> None:
    figure = figures.pairs("Pairs", confused)
    assert len(colors(figure)) > 20
    assert "Pairs" in words(figure)


@pytest.mark.parametrize("epochs", [EPOCHS[:1], EPOCHS], ids=["one", "three"])
def test_history_has_labeled_loss_and_accuracy_curves(epochs: pd.DataFrame) -> None:
    figure = figures.history("History", epochs, "held out")
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        training, other = axes.lines
        np.testing.assert_array_equal(training.get_xdata(), epochs["epoch"])
        np.testing.assert_array_equal(training.get_ydata(), epochs[name])
        np.testing.assert_array_equal(other.get_ydata(), epochs[f"val_{name}"])
        assert (training.get_label(), other.get_label()) == ("training", "held out")
        assert axes.get_title(loc="left").startswith(name)
    assert len(colors(figure)) > 50
    assert_apart_and_inside(figure)


def test_single_epoch_is_drawn_as_a_point() -> None:
    pixels = render(figures.history("H", EPOCHS[:1], "test")).reshape(-1, 3).astype(int)
    blue, orange = (
        np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) for color in ("#1f6f9f", "#d9622b")
    )
    legend = 2 * 20 * 2  # two lines of about 20 by 2 pixels
    for color in (blue, orange):
        assert (np.abs(pixels - color).max(axis=1) < 8).sum() > legend


def test_default_font_is_used_if_it_has_all_letters(install_font: InstallFont) -> None:
    install_font("NotoSans-Regular", "DejaVuSansMono")
    assert figures.drawable([*FASHION, "Größe", "Ωμέγα"]) == [*FASHION, "Größe", "Ωμέγα"]
    assert mpl.rcParams["font.family"] == ["DejaVu Sans"]


def test_other_scripts_use_an_installed_font(install_font: InstallFont) -> None:
    before = render(pairs(FASHION[:3]))
    install_font("Some-Regular", "DejaVuSansMono")
    assert figures.drawable(OTHER_SCRIPT) == OTHER_SCRIPT
    first, second = (pairs(names) for names in (OTHER_SCRIPT, OTHER_SCRIPT[::-1]))
    assert (render(first) != render(second)).any()  # letters instead of boxes
    np.testing.assert_array_equal(render(pairs(FASHION[:3])), before)


@pytest.mark.parametrize("names", [("NotoSans-Regular", "Alpha"), ("Alpha", "NotoSans-Regular")])
def test_preferred_fonts_come_first(install_font: InstallFont, names: tuple[str, str]) -> None:
    for name in names:
        preferred = name.startswith("Noto")
        install_font(name, "DejaVuSansMono" if preferred else "STIXGeneral")
    figures.drawable(OTHER_SCRIPT)
    assert mpl.rcParams["font.family"] == ["DejaVu Sans", "DejaVu Sans Mono"]


def test_class_numbers_replace_names_without_a_font(
    install_font: InstallFont, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The package of a suitable font is printed once."""
    install_font("LastResort", "LastResortHE-Regular")
    (tmp_path / "NotoSans-Regular.ttf").write_bytes(b"damaged")
    assert figures.drawable(["바지", "코트", "Bag"]) == ["0", "1", "2"]
    assert figures.drawable(["바지", "코트", "Bag"]) == ["0", "1", "2"]
    printed = capsys.readouterr().err
    assert printed.startswith("no installed font has U+BC14 HANGUL SYLLABLE BA, so figures show")
    assert "install fonts-noto-cjk (apt) or font-noto-sans-cjk (brew)" in printed
    assert printed.count("\n") == 1
    assert printed.isascii()
    assert figures.drawable(["ಒಂದು", "two"]) == ["0", "1"]
    printed = capsys.readouterr().err
    assert "install fonts-noto-core (apt) or font-noto-sans-kannada (brew)" in printed


def test_font_without_a_bold_face_causes_no_warning(
    install_font: InstallFont,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = [font for font in font_manager.fontManager.ttflist if font.name != "DejaVu Sans Mono"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", others)
    install_font("Some-Regular", "DejaVuSansMono")
    figures.drawable(OTHER_SCRIPT)
    render(figures.pairs(f"{OTHER_SCRIPT[0]}: most confused", [("a", "b", 1)]))
    assert caplog.messages == []


def test_title_drops_characters_without_a_font(install_font: InstallFont) -> None:
    figure = figures.pairs("패션: most confused", [("a", "b", 1)])
    assert figure.axes[0].get_title(loc="left") == "most confused"
    for title in ("Fashion, 패션: most confused", "Fashion (패션): most confused"):
        figure = figures.pairs(title, [("a", "b", 1)])
        assert figure.axes[0].get_title(loc="left") == "Fashion: most confused"

    install_font("Some-Regular", "DejaVuSansMono")
    title = f"{OTHER_SCRIPT[0]}: most confused"
    assert figures.pairs(title, [("a", "b", 1)]).axes[0].get_title(loc="left") == title


def test_title_with_fonts_for_all_characters_is_unchanged() -> None:
    title = "Données , (): erreurs"
    assert figures.pairs(title, [("a", "b", 1)]).axes[0].get_title(loc="left") == title


@pytest.mark.parametrize(
    ("name", "drawn"),
    [("a name of 20 letters", "a name of 20 lett…"), ("이름이아주긴클래스", "이름이아주긴클…")],
)
def test_long_names_are_truncated_by_display_width(name: str, drawn: str) -> None:
    assert figures._short(name, columns=18 if name.isascii() else 15) == drawn


def chart_texts(names: Sequence[str]) -> list[str]:
    """Visible texts of DVC's confusion matrix of one revision with 7,000 images in each cell."""
    template = (ROOT / ".dvc/plots/confusion_by_label.json").read_text(encoding="utf-8")
    cells = [
        {"rev": "HEAD", "label": label, "predicted": predicted, "count": "7000", "share": "0.5"}
        for label in names
        for predicted in names
    ]
    fields = {"X": "predicted", "Y": "label", "X_LABEL": "predicted", "Y_LABEL": "label"}
    for anchor, field in fields.items():
        template = template.replace(f"<DVC_METRIC_{anchor}>", field)
    chart = json.loads(template.replace('"<DVC_METRIC_DATA>"', json.dumps(cells)))
    assert chart["$schema"].endswith("/v5.json")
    drawing = vl_convert.vegalite_to_svg(chart, vl_version="5.14")
    found = re.findall(r"<text([^>]*)>([^<]*)</text>", drawing)
    return [text for attributes, text in found if 'opacity="0"' not in attributes]


def test_dvc_shows_counts_and_names_of_10_classes() -> None:
    texts = chart_texts(LONG)
    assert texts.count("7,000") == 100
    assert all(texts.count(name) == 2 for name in LONG)


def test_dvc_omits_counts_and_names_of_50_classes() -> None:
    names = [f"class no. {i}" for i in range(50)]
    texts = chart_texts(names)
    assert "7,000" not in texts
    assert 20 < sum(text in names for text in texts) <= 50  # of 100
