"""Runs the benchmark: prints a table for each part, writes results.json and results.png beside this file."""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.parts import accuracy, fit, growth, overhead, pipeline
from benchmarks.settings import Settings
from benchmarks.workspace import fetch_data
from stages.lib.files import write_figure
from tools.about import about

FOLDER = Path(__file__).parent
PEERS = FOLDER / ".venv" / "bin" / "python"
PARTS = {
    "fit": fit.measure,
    "accuracy": accuracy.measure,
    "pipeline": pipeline.measure,
    "overhead": overhead.measure,
    "growth": growth.measure,
}


def peers() -> dict[str, str]:
    """The versions of PyTorch and JAX, which have an environment of their own."""
    code = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in ('torch', 'jax')}))"
    versions: dict[str, str] = json.loads(subprocess.check_output([PEERS, "-c", code], text=True))
    return versions


def main() -> None:
    """Runs the parts that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each counts; at most 3 for long ones")
    parser.add_argument("--quick", action="store_true", help="one round of little work, to see that all runs")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be repeated")
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    described = about() | peers()
    print(", ".join(f"{name} {value}" for name, value in described.items()))
    parts = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name).resolve()
        fetch_data(scratch / "fetch")
        for part in args.only or PARTS:
            print(f"\n{part}", flush=True)
            parts[part] = PARTS[part](Settings(scratch, PEERS, rounds, args.quick))
            print("\n" + report.table(parts[part]), flush=True)
    settings = {"rounds": rounds, "quick": args.quick}
    results = json.dumps(report.content(described, settings, parts), indent=1)
    (FOLDER / "results.json").write_text(results + "\n", encoding="utf-8")
    write_figure(FOLDER / "results.png", report.picture(described, parts))
    print("\nbenchmarks/results.json, benchmarks/results.png")


if __name__ == "__main__":
    main()
