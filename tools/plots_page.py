"""Write the page of `dvc plots` with Vega embedded, so that it works offline."""

from pathlib import Path

from stages.lib.files import replacing
from stages.lib.stage import run
from tools.lib.charts import read_vega

TEMPLATE = Path(".dvc/page.html")
OFFLINE = Path(".dvc/offline.html")  # not in Git, like config.local, which contains this name


def main() -> None:
    page = TEMPLATE.read_text(encoding="utf-8")
    with replacing(OFFLINE) as partial:
        script = f"<script>{read_vega()}</script>"
        partial.write_text(page.replace("{scripts}", script), encoding="utf-8")


if __name__ == "__main__":
    run(main)
