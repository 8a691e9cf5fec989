"""Run the benchmark; after each part, print its table and write results.json and results.png."""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.parts import (
    accuracy,
    cnn,
    fit,
    images,
    overhead,
    photos,
    pipeline,
    predict,
    scaling,
    serve,
    workers,
)
from benchmarks.settings import Settings
from benchmarks.workspace import commit, fetch_data, is_current
from stages.lib.files import write_figure
from tools.about import about

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
PEERS = FOLDER / ".venv" / "bin" / "python"
PARTS = {
    "fit": fit.measure,
    "accuracy": accuracy.measure,
    "cnn": cnn.measure,
    "pipeline": pipeline.measure,
    "overhead": overhead.measure,
    "scaling": scaling.measure_images,
    "classes": scaling.measure_classes,
    "images": images.measure,
    "predict": predict.measure,
    "photos": photos.measure,
    "serve": serve.measure,
    "workers": workers.measure,
}


def peers() -> dict[str, str]:
    """Return the versions of PyTorch and JAX, which have their own environment."""
    code = "import json, importlib.metadata as m; "
    code += "print(json.dumps({n: m.version(n) for n in ('torch', 'jax')}))"
    versions: dict[str, str] = json.loads(subprocess.check_output([PEERS, "-c", code], text=True))
    return versions


def current_parts(machine: dict[str, str]) -> dict[str, Any]:
    """Return earlier results of the same code on the same machine."""
    if not RESULTS.exists():
        return {}
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    if stored["machine"] != machine:
        return {}
    return {
        name: part
        for name, part in stored["parts"].items()
        if "commit" in part and is_current(part["commit"])
    }


def write_results(machine: dict[str, str], parts: dict[str, Any]) -> None:
    """Write results.json and results.png."""
    parts = {name: parts[name] for name in PARTS if name in parts}
    results = json.dumps({"machine": machine, "parts": parts}, indent=1)
    RESULTS.write_text(results + "\n", encoding="utf-8")
    write_figure(RESULTS.with_suffix(".png"), report.results_figure(machine, parts))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=10, help="rounds per part; at most 5 if a round takes minutes"
    )
    parser.add_argument(
        "--quick", action="store_true", help="check that everything runs, without writing results"
    )
    parser.add_argument(
        "--only",
        choices=PARTS,
        action="append",
        help="run only this part and keep current results of the others; may be repeated",
    )
    args = parser.parse_args()
    if args.rounds < 3:
        parser.error("--rounds: at least 3, for an interval")
    return args


def main() -> None:
    """Measure the selected parts."""
    args = parse_arguments()
    rounds = 1 if args.quick else args.rounds
    measured = "" if args.quick else commit()
    machine = about() | peers()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    parts = current_parts(machine)
    with tempfile.TemporaryDirectory() as folder:
        fetch_data(Path(folder).resolve())
    for name in args.only or PARTS:
        print(f"\n{name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            part = PARTS[name](Settings(Path(folder).resolve(), PEERS, rounds, args.quick))
        print("\n" + report.table(part), flush=True)
        parts[name] = report.content(part, measured, rounds)
        if not args.quick:
            write_results(machine, parts)
    if not args.quick:
        print("\nbenchmarks/results.json, benchmarks/results.png")


if __name__ == "__main__":
    main()
