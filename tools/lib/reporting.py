"""The report of runs as one HTML page, with the images that the error browser shows."""

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
PIXELS = 2_400_000  # bytes of images in a page, before compression
CORRECT = 1_000  # correctly classified images in a page at most
SIDE = 64  # pixels, of an image at most
ATLAS_WIDTH = 2_048  # pixels


def spread(index: np.ndarray, groups: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Sample images at random with a fixed seed, evenly over groups as far as they reach.

    Args:
        index: The images to choose from, shape (n,).
        groups: For each grouping, the group of each image of the split.
        count: Number of images at most.

    Returns:
        Sorted, shape (up to count,).
    """
    index = np.random.default_rng(0).permutation(index)
    ranks = [pd.Series(group[index]).groupby(group[index]).cumcount() for group in groups]
    order = np.argsort(np.min(ranks, axis=0), kind="stable")
    return np.sort(index[order[:count]])


def choose_images(records: Sequence[Record], count: int) -> np.ndarray:
    """Choose images of one test split: all errors of all runs, then a sample of the others.

    Args:
        records: Runs on the same images.
        count: Number of images at most. Errors take four fifths of it at most, as a sample.

    Returns:
        Sorted indices into the test split.
    """
    groups = records[0].labels, records[0].bins
    wrong = ~np.all([each.correct for each in records], axis=0)
    errors = spread(np.flatnonzero(wrong), groups, max(1, count * 4 // 5))
    correct = spread(np.flatnonzero(~wrong), groups, min(CORRECT, count - len(errors)))
    return np.sort(np.concatenate([errors, correct]))


def drawable(images: np.ndarray, dataset: dict[str, Any]) -> np.ndarray:
    """Stretch levels to 0..255, and draw light on dark as dark on light, as figures do.

    Args:
        images: Shape (n, height, width) or (n, height, width, 3), uint8.
        dataset: The content of dataset.json.

    Returns:
        Of the same shape, uint8; at most `SIDE` pixels high and wide.
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
    """A PNG file as an address."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def draw_atlas(images: np.ndarray) -> tuple[str, int]:
    """Draw images of shape (n, height, width[, 3]), uint8, in rows; its address and columns."""
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
    """Six decimals, as in reports/errors.csv."""
    return [round(float(value), 6) for value in values]


def browser_data(records: Sequence[Record]) -> dict[str, list[dict[str, Any]]]:
    """What the error browser shows: the test images of each dataset, and each run's predictions."""
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
    """JSON that cannot end the script element around it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def source_hash(text: str) -> str:
    """What the page's Content-Security-Policy allows: this text alone."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def read_figures(records: Sequence[Record], plots: Sequence[Any]) -> list[tuple[str, list[str]]]:
    """The figures among the plots of dvc.yaml: paths, and their addresses in each run."""
    paths = [plot for plot in plots if isinstance(plot, str)]
    return [(path, [data_url(each.read(path)) for each in records]) for path in paths]


def render(records: Sequence[Record]) -> str:
    """Render the report of finished runs, which depends on nothing else.

    Raises:
        StageError: Outputs of a run are missing, or are not those that dvc.lock records.
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
