"""Write a report of runs as a single HTML file that works offline."""

import argparse
from pathlib import Path

from stages.lib.files import replacing
from stages.lib.stage import StageError, run
from tools.lib.records import WORKSPACE, read_records
from tools.lib.reporting import render


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__)
    parser.add_argument(
        "revisions",
        nargs="*",
        metavar="REV",
        default=[WORKSPACE],
        help="experiments, branches, tags, commits, or workspace (the default), side by side",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("reports/report.html"), help="default: %(default)s"
    )
    arguments = parser.parse_args()
    if arguments.out.is_dir() or not arguments.out.name:
        raise StageError(f"--out: expected a file, found the folder {arguments.out}")
    page = render(read_records(arguments.revisions)).encode()
    with replacing(arguments.out) as partial:
        partial.write_bytes(page)
    print(f"{arguments.out}: {len(page) / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    run(main)
