"""Runs the benchmark: prints a table for each part, writes results.json and results.png beside this file."""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.parts import accuracy, fit, overhead, pipeline, scaling
from benchmarks.settings import Settings
from benchmarks.workspace import fetch_data
from stages.lib.files import write_figure
from tools.about import about

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
PEERS = FOLDER / ".venv" / "bin" / "python"
PARTS = {
    "fit": fit.measure,
    "accuracy": accuracy.measure,
    "pipeline": pipeline.measure,
    "overhead": overhead.measure,
    "growth": scaling.measure,
}


def peers() -> dict[str, str]:
    """The versions of PyTorch and JAX, which have an environment of their own."""
    code = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in ('torch', 'jax')}))"
    versions: dict[str, str] = json.loads(subprocess.check_output([PEERS, "-c", code], text=True))
    return versions


def main() -> None:
    """Runs the parts that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often each counts; at most 3 for long ones"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round of little work, to see that all runs; writes nothing",
    )
    parser.add_argument(
        "--only",
        choices=PARTS,
        action="append",
        help="this part, other results stay; may be repeated",
    )
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
    if args.quick:
        return
    # Parts that were not measured now stay, if the machine is the same.
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if args.only and RESULTS.exists() else {}
    before = kept["parts"] if kept.get("machine") == described else {}
    measured = before | {
        name: report.content(part) | {"rounds": rounds} for name, part in parts.items()
    }
    measured = {name: measured[name] for name in PARTS if name in measured}
    results = json.dumps({"machine": described, "parts": measured}, indent=1)
    RESULTS.write_text(results + "\n", encoding="utf-8")
    write_figure(RESULTS.with_suffix(".png"), report.picture(described, measured))
    print("\nbenchmarks/results.json, benchmarks/results.png")


if __name__ == "__main__":
    main()
