"""The charts of `dvc plots`, and the Vega scripts that draw them offline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vl_convert
from dvc_render.exceptions import DvcRenderError
from dvc_render.vega import VegaRenderer

from stages.lib.stage import StageError
from tools.lib.records import Record

TEMPLATES = Path(".dvc/plots")
MAX_ROWS = 10_000  # of a chart; confusion matrices of more than 100 classes are megabytes
COMBINED_COLUMN = "dvc_inferred_y_value"  # DVC's name for the values of several columns


def read_vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, safe within a script element."""
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed")
    return script.replace("</script", "<\\/script").replace("<!--", "\\x3C!--")


def fill_charts(records: Sequence[Record], plots: Sequence[Any]) -> list[dict[str, Any]]:
    """Fill the templates of the charts with the data of runs.

    Args:
        records: The runs.
        plots: The section `plots` of dvc.yaml. Figures are skipped.

    Returns:
        Vega-Lite specifications. Charts of more than `MAX_ROWS` rows are omitted.
    """
    definitions = [chart for plot in plots if isinstance(plot, dict) for chart in plot.items()]
    filled = [_fill_chart(records, name, definition) for name, definition in definitions]
    # Vega warns about the older schema version in the templates.
    return [{**chart, "$schema": None} for chart in filled if chart]


def _fill_chart(
    records: Sequence[Record], name: str, definition: dict[str, Any]
) -> dict[str, Any] | None:
    ((file, columns),) = definition["y"].items()
    columns = [columns] if isinstance(columns, str) else columns
    x = definition["x"] if isinstance(definition["x"], str) else definition["x"][file]
    y = columns[0] if len(columns) == 1 else COMBINED_COLUMN
    rows = [
        row | {"rev": record.name, "field": column, y: row[column]}
        for record in records
        for column in columns
        for row in record.read_rows(file)
    ]
    if len(rows) > MAX_ROWS:
        return None
    texts = {key: definition[key] for key in ("title", "x_label", "y_label") if key in definition}
    sources = [{"filename": file, "field": column} for column in columns]
    names = [record.name for record in records]
    try:
        chart: dict[str, Any] = VegaRenderer(
            rows,
            name,
            template=definition["template"],
            template_dir=str(TEMPLATES),
            x=x,
            y=y,
            anchors_y_definitions=sources,
            revs_with_datapoints=names,
            **texts,
        ).get_filled_template()
    except DvcRenderError as error:
        raise StageError(f"dvc.yaml: cannot draw the plot {name}: {error}") from error
    return chart
