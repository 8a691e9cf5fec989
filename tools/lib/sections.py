"""Sections of the report as HTML, escaped by the serializer of the standard library."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import floor
from typing import Any
from xml.etree.ElementTree import Element, tostring

import numpy as np

from stages.lib.results import metrics
from tools.lib.records import WORKSPACE, Record, flat, uncommitted_sources
from tools.lib.significance import verdicts

MAX_CLASSES = 20  # in a confusion matrix; with more, those with the most errors are shown
SPACE = "\N{NO-BREAK SPACE}"
SHADES = 6  # of cells in a confusion matrix, as in report.css
INTEREST = 0.005  # as in tools.compare; does not affect verdicts
NONE = "-"
SCORES = {  # key in metrics.json or scores.json, and format
    "accuracy": ("accuracy", ".2%"),
    "95% interval, lower end": ("accuracy_low", ".2%"),
    "95% interval, upper end": ("accuracy_high", ".2%"),
    "misclassified": ("errors", ","),
    "top-2 accuracy": ("top2_accuracy", ".2%"),
    "macro F1": ("macro_f1", ".4f"),
    "loss (nats)": ("loss", ".4f"),
    "Brier score": ("brier", ".4f"),
    "calibration error (ECE)": ("ece", ".4f"),
    "ECE if calibrated, 95% quantile": ("ece_if_calibrated_q95", ".4f"),
    "ECE after temperature scaling": ("temperature_scaling.ece", ".4f"),
    "validation accuracy": ("validation.accuracy", ".2%"),
    "validation loss (nats)": ("validation.loss", ".4f"),
    "parameters": ("parameters", ","),
    "multiply-adds per image": ("multiply_adds", ","),
}

Content = Any  # an element, text, or an iterable of contents


def tag(name: str, *content: Content, **attributes: object) -> Element:
    """Create an element; `data_run=1, class_="run"` are the attributes data-run and class."""
    words = {key.rstrip("_").replace("_", "-"): str(value) for key, value in attributes.items()}
    element = Element(name, words)
    for item in content:
        _add(element, item)
    return element


def _add(element: Element, item: Content) -> None:
    if isinstance(item, Element):
        element.append(item)
    elif not isinstance(item, str):
        for each in item:
            _add(element, each)
    elif len(element):
        element[-1].tail = (element[-1].tail or "") + item
    else:
        element.text = (element.text or "") + item


def html(*content: Content) -> str:
    """Serialize elements and text."""
    wrapped = tostring(tag("div", *content), encoding="unicode", method="html")
    return wrapped.removeprefix("<div>").removesuffix("</div>")


def table(header: Sequence[Content], rows: Iterable[Sequence[Content]], caption: str) -> Element:
    """Create a table with row headings in the first column, scrollable in narrow windows."""
    head = tag("tr", (tag("th", cell, scope="col") for cell in header))
    body = (
        tag("tr", tag("th", first, scope="row"), (tag("td", cell) for cell in others))
        for first, *others in rows
    )
    content = tag("caption", caption), tag("thead", head), tag("tbody", body)
    return tag("div", tag("table", *content), class_="scroll", tabindex=0, role="group")


def name(text: str) -> Element:
    """Isolate the name of a class or run, in any script and direction."""
    return tag("bdi", text)


def select(words: Content, title: str, total: int, **which: object) -> Element:
    """Create a button that shows images in the error browser; report.js interprets `which`."""
    return tag("button", words, type="button", data_title=title, data_total=total, **which)


def percent(share: object) -> str:
    """Format a share as a percentage with two decimals; a dash for an empty CSV cell or None."""
    return NONE if share in ("", None) else f"{float(str(share)):.2%}".replace("%", f"{SPACE}%")


def interval(low: object, high: object) -> str:
    """Format a confidence interval of shares."""
    return NONE if low in ("", None) else f"{100 * float(str(low)):.2f} to {percent(high)}"


def bar(share: str, tick: str) -> Element:
    """Draw a bar from 0 to `share`, and a tick, on a scale from 0 to 1."""
    width, x = (f"{100 * float(value):.2f}" for value in (share, tick))
    whole = tag("rect", class_="whole", width=100, height=10)
    return _drawing(whole, tag("rect", width=width, height=10), tag("line", x1=x, x2=x, y2=10))


def whisker(low: str, share: str, high: str, start: float) -> Element:
    """Draw a share with its interval on a scale from `start` to 1; empty without a share."""
    if not share:
        return _drawing()
    ends = (100 * (float(value) - start) / (1 - start) for value in (low, share, high))
    left, middle, right = (f"{end:.2f}" for end in ends)
    line = tag("rect", class_="whole", x=left, y=3, height=4, width=float(right) - float(left))
    return _drawing(line, tag("circle", cx=middle, cy=5, r=3.5))


def _drawing(*shapes: Element) -> Element:
    size = {"viewBox": "-4 0 108 10", "width": "130", "height": "12", "aria-hidden": "true"}
    drawn = tag("svg", shapes)
    drawn.attrib.update(size)
    return drawn


def summary(records: Sequence[Record]) -> str:
    """Render a card per run, all scores, and differences of runs on the same test images."""
    cards, columns = [], []
    for record in records:
        scores = flat(record.read_json("reports/scores.json"))
        scores |= flat(record.read_json("reports/metrics.json"))
        columns.append([_score(scores, key, form) for key, form in SCORES.values()])
        limits = interval(scores["accuracy_low"], scores["accuracy_high"])
        kind = f"{record.params['model.kind']} on {record.dataset['title']}"
        words = f"accuracy on {len(record.labels):,} test images (95% interval {limits})"
        cards.append(
            tag(
                "div",
                tag("h3", name(record.name), " ", tag("small", kind)),
                tag("p", percent(scores["accuracy"]), class_="number"),
                tag("p", words),
                tag("ul", (tag("li", finding) for finding in findings(record, scores))),
                class_="card",
            )
        )
    rows = [row for row in zip(SCORES, *columns, strict=True) if {*row[1:]} != {NONE}]
    header = ["score", *(name(record.name) for record in records)]
    scored = table(header, rows, "Scores on the test split, and on the validation split")
    return html(tag("div", cards, class_="cards"), compared(records), scored)


def _score(scores: Mapping[str, Any], key: str, form: str) -> str:
    """Format a score; older runs lack some."""
    if key not in scores:
        return NONE
    return format(scores[key], form).replace("%", f"{SPACE}%")


def findings(record: Record, scores: Mapping[str, Any]) -> Iterator[Sequence[Content]]:
    """Yield the main findings: most confused classes, lowest recall, calibration."""
    rows = [row for row in record.read_rows("reports/confusion.csv") if row["count"] != "0"]
    errors = [row for row in rows if row["label"] != row["predicted"]]
    errors.sort(key=lambda row: -int(row["count"]))
    pairs = [
        [name(row["label"]), " as ", name(row["predicted"]), f"{SPACE}({row['count']})"]
        for row in errors[:3]
    ]
    if pairs:
        listed = ([", " if i else "", pair] for i, pair in enumerate(pairs))
        yield [f"Most confused of {scores['errors']:,} errors: ", listed]
    classes = [row for row in record.read_rows("reports/classes.csv") if row["recall"]]
    lowest = min(classes, key=lambda row: float(row["recall"]))
    yield ["Lowest recall: ", name(lowest["class"]), f" ({percent(lowest['recall'])})"]
    if expected := scores.get("ece_if_calibrated_q95"):  # older runs lack it
        over = record.probabilities.max(axis=1).mean() > scores["accuracy"]
        verdict = "Overconfident" if over else "Underconfident"
        if scores["ece"] <= expected:
            verdict = "Calibrated"
        words = f"ECE {scores['ece']:.4f}; a calibrated model stays below {expected:.4f}"
        yield [f"{verdict}: {words}"]


def compared(records: Sequence[Record]) -> Content:
    """Tabulate differences in accuracy between runs on the same test images, if any."""
    rows = []
    for images in dict.fromkeys(record.images for record in records):
        same = [record for record in records if record.images == images]
        found = verdicts([record.correct[None] for record in same], INTEREST)
        for (i, j), verdict in found.items():
            points = (100 * x for x in (verdict.difference, verdict.low, verdict.high))
            difference, low, high = (f"{x:+.2f}" for x in points)
            p = "< .001" if verdict.p < 0.001 else f"{verdict.p:.3f}".lstrip("0")
            words = "different" if verdict.better else "no difference shown"
            cells = difference, f"{low} to {high}", p, words
            rows.append([name(same[i].name), name(same[j].name), *cells])
    header = ["first", "second", "difference", "95% interval", "p", "verdict"]
    caption = (
        "Accuracy of the first minus that of the second, in percentage points. The verdicts are on "
        "these models, for new test images; they do not cover other training seeds."
    )
    return table(header, rows, caption) if rows else []


def configuration(records: Sequence[Record]) -> str:
    """Render the parameters of the runs: differing ones, then equal ones, collapsed."""
    columns = [
        record.params | {"source code": record.code, "packages": record.packages}
        for record in records
    ]
    keys = [*dict.fromkeys(key for column in columns for key in column)]
    rows = {key: [_value(column, key) for column in columns] for key in keys}
    differing = {key: row for key, row in rows.items() if len({*row}) > 1}
    header = ["parameter", *(name(record.name) for record in records)]
    if len(records) == 1:
        caption = "Parameters, and digests of the source code of the stages and of the lock file"
        return html(table(header, ([key, *row] for key, row in rows.items()), caption))
    same = [(key, row[0]) for key, row in rows.items() if key not in differing]
    found = ([key, *row] for key, row in differing.items())
    shown = (
        table(header, found, "Parameters that differ")
        if differing
        else tag("p", "All parameters, the source code and the packages are equal.")
    )
    folded = tag(
        "details",
        tag("summary", f"{len(same)} equal parameters"),
        table(["parameter", "value"], same, "Parameters that are equal in all runs"),
    )
    return html(shown, folded)


def _value(column: Mapping[str, object], key: str) -> str:
    value = column.get(key, NONE)
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def matrix(record: Record) -> Element:
    """Render the confusion matrix, of the classes with the most errors if there are too many."""
    names = record.dataset["classes"]
    counts = metrics.confusion(record.labels, record.predicted, len(names))
    errors = counts - np.diag(np.diag(counts))
    involved = errors.sum(axis=0) + errors.sum(axis=1)
    chosen = np.sort(np.argsort(-involved, kind="stable")[:MAX_CLASSES])
    most = max(1, int(errors[np.ix_(chosen, chosen)].max()))
    header = [tag("td", tag("small", "label ↓ predicted →"))]
    for j in chosen:
        button = select(
            name(names[j]),
            f"predicted as {names[j]}",
            int(counts[:, j].sum()),
            data_predicted=j,
        )
        header.append(tag("th", button, scope="col"))
    rows = [tag("tr", header)]
    for i in chosen:
        title, total = f"label {names[i]}", int(counts[i].sum())
        cells = [tag("th", select(name(names[i]), title, total, data_label=i), scope="row")]
        for j in chosen:
            count = int(counts[i, j])
            shade = "diagonal" if i == j else f"shade{-(-SHADES * count // most)}"
            title = f"label {names[i]}, predicted as {names[j]}"
            words = {"data_label": i, "data_predicted": j, "aria_label": f"{count:,}: {title}"}
            button = select(f"{count:,}", title, count, **words) if count else tag("span", "·")
            cells.append(tag("td", button, class_=shade if count else "none"))
        rows.append(tag("tr", cells))
    caption = "Confusion matrix (test images). Select a cell, or the name of a class."
    if len(names) > MAX_CLASSES:
        caption += f" Of {len(names)} classes, the {MAX_CLASSES} with the most errors are shown."
    long = any(len(names[i]) > 3 for i in chosen)
    content = tag("table", tag("caption", caption), rows, class_="matrix" + " long" * long)
    return tag("div", content, class_="scroll", tabindex=0, role="group")


def class_table(record: Record) -> Element:
    """Tabulate recall, precision and F1 score by class, with buttons that show the errors."""
    rows = []
    errors = record.labels[~record.correct], record.predicted[~record.correct]
    table_rows = record.read_rows("reports/classes.csv")
    lows = [float(row["recall_low"]) for row in table_rows if row["recall_low"]]
    start = min(floor(20 * min(lows)) / 20, 0.95)
    for i, row in enumerate(table_rows):
        missed, taken = (int((side == i).sum()) for side in errors)
        recall = select(
            percent(row["recall"]),
            f"label {row['class']}, predicted as another class",
            missed,
            data_label=i,
            data_wrong=1,
        )
        precision = select(
            percent(row["precision"]),
            f"predicted as {row['class']}, labeled as another class",
            taken,
            data_predicted=i,
            data_wrong=1,
        )
        limits = interval(row["recall_low"], row["recall_high"])
        drawn = whisker(row["recall_low"], row["recall"], row["recall_high"], start)
        images, f1 = f"{int(row['images']):,}", f"{float(row['f1']):.4f}" if row["f1"] else NONE
        rows.append([name(row["class"]), images, recall, limits, drawn, precision, f1])
    scale = f"{start:.0%} to 100%".replace("%", f"{SPACE}%")
    header = ["class", "images", "recall", "95% interval", scale, "precision", "F1"]
    caption = "Scores by class. Select a recall or a precision to see the images that lower it."
    return table(header, rows, caption)


def calibration_table(record: Record) -> Element:
    """Tabulate the reliability diagram, with buttons that show the images of each bin."""
    numbers = np.unique(record.bins)
    rows = []
    for number, row in zip(numbers, record.read_rows("reports/calibration.csv"), strict=True):
        limits = f"{float(row['low']):.2f} to {float(row['high']):.2f}"
        count = int(row["images"])
        button = select(limits, f"confidence {limits}", count, data_bin=number)
        mean, accuracy = row["confidence"], row["accuracy"]
        around = interval(row["accuracy_low"], row["accuracy_high"])
        drawn = bar(accuracy, mean)
        rows.append([button, f"{count:,}", percent(mean), percent(accuracy), around, drawn])
    header = ["confidence", "images", "mean", "accuracy", "95% interval", f"0 to 100{SPACE}%"]
    caption = (
        "Calibration. Bars are the accuracy, ticks the mean confidence: a tick to the right of its "
        "bar means overconfidence. Select a range to see its images."
    )
    return table(header, rows, caption)


def presets(records: Sequence[Record], number: int, kept: int) -> Element:
    """Render buttons for common selections of images; the page contains `kept` images."""
    record = records[number]
    wrong, count = ~record.correct, len(record.labels)
    errors = int(wrong.sum())
    buttons = [
        select("Errors", "misclassified, most confident first", errors, data_wrong=1),
        select(
            "Likely label errors",
            "misclassified, lowest label quality first",
            errors,
            data_wrong=1,
            data_order="quality",
        ),
        select("Correct", "correctly classified", count - errors, data_right=1),
    ]
    for i, other in enumerate(records):
        if i != number and other.images == record.images:
            title = f"misclassified here, correct in {other.name}"
            fixed = int((wrong & other.correct).sum())
            shown = "Correct in ", name(other.name)
            buttons.append(select(shown, title, fixed, data_wrong=1, data_than=i))
    words = f"{kept:,} of {count:,} test images are in this file."
    return tag("div", buttons, tag("small", words), class_="presets")


def browser(records: Sequence[Record], data: Mapping[str, Any]) -> str:
    """Render the tables of each run that select images."""
    shown = []
    for number, (record, run) in enumerate(zip(records, data["runs"], strict=True)):
        heading = tag("h3", name(record.name), " ", tag("small", record.dataset["title"]))
        kept = len(data["sets"][run["set"]]["index"])
        content = matrix(record), class_table(record), calibration_table(record)
        first = heading, presets(records, number, kept)
        shown.append(tag("div", first, content, class_="run", data_run=number))
    return html(shown)


def figures(paths: Sequence[tuple[str, Sequence[str]]], records: Sequence[Record]) -> str:
    """Render the figures of the runs side by side."""
    shown = []
    for path, urls in paths:
        title = path.rpartition("/")[2].removesuffix(".png").replace("_", " ")
        for record, url in zip(records, urls, strict=True):
            words = [title.capitalize(), *([", ", name(record.name)] if len(records) > 1 else [])]
            image = tag("img", src=url, alt=f"{title}, {record.name}")
            shown.append(tag("figure", tag("figcaption", words), image))
    return html(tag("div", shown, class_="figures"))


def commands(records: Sequence[Record]) -> str:
    """Render the commands that reproduce each run in a clone of the repository."""
    shown: list[Content] = []
    for record in records:
        lines = record.reproduce()
        if record.restore:
            here = ["# in the clone that has the experiment", record.restore]
            lines = [*here, "# elsewhere", *lines]
        shown += [tag("h3", name(record.name)), tag("pre", tag("code", "\n".join(lines)))]
        changed = uncommitted_sources() if record.name == WORKSPACE and record.base else []
        if changed:
            words = f"The workspace has uncommitted changes in {shlex.join(changed)}"
            shown.append(
                tag("p", f"{words}, which these commands do not include.", class_="warning")
            )
    return html(shown)
