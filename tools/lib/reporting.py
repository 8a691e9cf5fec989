"""Render the report of runs as a single HTML page, including the images of the error browser."""

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from stages.lib.params import parse_yaml
from stages.lib.results import metrics
from stages.lib.sources.pictures import fit
from tools.lib import charts, sections
from tools.lib.records import Record

PAGE = Path(__file__).parent / "page/report"
PIXELS = 2_400_000  # maximum bytes of all images in a page, before compression
CORRECT = 1_000  # maximum number of correctly classified images in a page
SIDE = 64  # maximum height and width of an image in pixels
ATLAS_WIDTH = 2_048  # pixels


def spread(index: np.ndarray, groups: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Sample images with a fixed seed, as evenly over groups as possible.

    Args:
        index: Indices of the images to choose from, shape (n,).
        groups: For each grouping, the group of each image of the split.
        count: Maximum number of images.

    Returns:
        Sorted indices, shape (up to count,).
    """
    index = np.random.default_rng(0).permutation(index)
    ranks = [pd.Series(group[index]).groupby(group[index]).cumcount() for group in groups]
    order = np.argsort(np.min(ranks, axis=0), kind="stable")
    return np.sort(index[order[:count]])


def choose_images(records: Sequence[Record], count: int) -> np.ndarray:
    """Choose images of one test split: errors of any run first, then a sample of the others.

    Args:
        records: Runs on the same images.
        count: Maximum number of images. If there are too many errors, a sample takes 80% of it.

    Returns:
        Sorted indices into the test split.
    """
    groups = records[0].labels, records[0].bins
    wrong = ~np.all([each.correct for each in records], axis=0)
    errors = spread(np.flatnonzero(wrong), groups, max(1, count * 4 // 5))
    correct = spread(np.flatnonzero(~wrong), groups, min(CORRECT, count - len(errors)))
    return np.sort(np.concatenate([errors, correct]))


def drawable(images: np.ndarray, dataset: dict[str, Any]) -> np.ndarray:
    """Stretch levels to 0..255, and invert light-on-dark gray images, as in figures.

    Args:
        images: Shape (n, height, width) or (n, height, width, 3), uint8.
        dataset: The content of dataset.json.

    Returns:
        Images, uint8, reduced to at most `SIDE` pixels in height and width.
    """
    low, high = dataset["levels"]
    stretched = np.interp(np.arange(256), [low, max(high, low + 1)], [0, 255]).round()
    if images.ndim == 3 and dataset["background"] < (low + high) / 2:
        stretched = 255 - stretched
    height, width = images.shape[1:3]
    if (scale := SIDE / max(height, width)) < 1:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        images = np.stack([fit(image, *size) for image in images])
    return np.asarray(stretched.astype(np.uint8)[images])


def data_url(png: bytes) -> str:
    """Encode a PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def draw_atlas(images: np.ndarray) -> tuple[str, int]:
    """Tile images, shape (n, height, width[, 3]), uint8; return data URL and number of columns."""
    height, width, *color = images.shape[1:]
    columns = min(len(images), ATLAS_WIDTH // width)
    rows = -(-len(images) // columns)
    cells = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    cells[: len(images)] = images
    cells = cells.reshape(rows, columns, height, width, *color).swapaxes(1, 2)
    file = io.BytesIO()
    atlas = Image.fromarray(cells.reshape(rows * height, columns * width, *color))
    atlas.save(file, "PNG", optimize=True)
    return data_url(file.getvalue()), columns


def rounded(values: np.ndarray) -> list[float]:
    """Round to six decimals, as in reports/errors.csv."""
    return [round(float(value), 6) for value in values]


def browser_data(records: Sequence[Record]) -> dict[str, list[dict[str, Any]]]:
    """Collect the error browser's data: test images of each dataset, predictions of each run."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.images, []).append(record)
    sets: list[dict[str, Any]] = []
    runs: dict[str, dict[str, Any]] = {}
    for same in groups.values():
        first = same[0]
        shape = first.dataset["arrays"]["test_images"]["shape"][1:]
        height, width = (min(SIDE, side) for side in shape[:2])
        size = height * width * (3 if len(shape) == 3 else 1)
        chosen = choose_images(same, max(1, PIXELS // len(groups) // size))
        images = drawable(first.read_raw("test_images")[chosen], first.dataset)
        atlas, columns = draw_atlas(images)
        sets.append(
            {
                "classes": first.dataset["classes"],
                "height": images.shape[1],
                "width": images.shape[2],
                "columns": columns,
                "atlas": atlas,
                "index": chosen.tolist(),
                "labels": first.labels[chosen].tolist(),
            }
        )
        for each in same:
            probabilities, labels = each.probabilities[chosen], each.labels[chosen]
            runs[each.name] = {
                "name": each.name,
                "set": len(sets) - 1,
                "predicted": each.predicted[chosen].tolist(),
                "confidence": rounded(probabilities.max(axis=1)),
                "labelProbability": rounded(probabilities[np.arange(len(chosen)), labels]),
                "quality": rounded(metrics.label_quality(labels, probabilities)),
                "bin": each.bins[chosen].tolist(),
            }
    return {"sets": sets, "runs": [runs[record.name] for record in records]}


def embed_json(content: object) -> str:
    """Serialize to JSON that cannot close the enclosing script element."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def source_hash(text: str) -> str:
    """Return the Content-Security-Policy source that allows only this script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def read_figures(records: Sequence[Record], plots: Sequence[Any]) -> list[tuple[str, list[str]]]:
    """Read the figures among the plots of dvc.yaml: path, and data URL in each run."""
    paths = [plot for plot in plots if isinstance(plot, str)]
    return [(path, [data_url(each.read(path)) for each in records]) for path in paths]


def render(records: Sequence[Record]) -> str:
    """Render the report of finished runs; it is deterministic.

    Raises:
        StageError: Outputs of a run are missing, or differ from dvc.lock.
    """
    definition: Any = parse_yaml(records[0].content("dvc.yaml").decode(), "dvc.yaml")
    plots = definition["plots"]
    data = browser_data(records) | {"charts": charts.fill_charts(records, plots)}
    style, script = ((PAGE / f"report.{end}").read_text("utf-8") for end in ("css", "js"))
    vega = charts.read_vega()
    titles = dict.fromkeys(each.dataset["title"] for each in records)
    title = f"Classifier report: {', '.join(titles)}"
    return Template((PAGE / "report.html").read_text("utf-8")).substitute(
        title=html.escape(title),
        scripts=f"{source_hash(vega)} {source_hash(script)}",
        styles=source_hash(style),
        style=style,
        vega=vega,
        script=script,
        data=embed_json(data),
        summary=sections.summary(records),
        configuration=sections.configuration(records),
        browser=sections.browser(records, data),
        figures=sections.figures(read_figures(records, plots), records),
        commands=sections.commands(records),
    )
