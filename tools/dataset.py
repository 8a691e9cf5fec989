"""Import your own images as a dataset: `python -m tools.dataset NAME PATH`.

PATH is a folder with one folder of images per class (or train and test folders of these), npz, CSV
or IDX files, or a zip of any of these.
"""

import argparse
import difflib
import hashlib
import io
import math
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from stages.lib.files import read_chunks, replacing, write_figure
from stages.lib.sources.catalog import DATASETS, read_entry
from stages.lib.sources.fetching import KERAS_NAMES
from stages.lib.stage import StageError, run
from tools.lib import data_report, imports

OWN = Path("data/own")
REPORTS = Path("reports/data")
SPLITS = ("train", "validation", "test")
RESERVED = ("true", "false", "null", "yes", "no", "on", "off", "nan", "inf")  # not strings in YAML


def check(options: imports.Options) -> None:
    """Validate the options of the command line."""
    name = options.name
    if not re.fullmatch("[a-z][a-z0-9_-]{0,63}", name, re.I) or name.lower() in RESERVED:
        raise StageError(f"NAME: expected a letter, then letters, digits, _ or -, found {name!r}")
    if options.size and not all(1 <= side <= 4096 for side in options.size):
        raise StageError(f"--size: expected pixels from 1 to 4096, found {options.size}")
    if not 0 < options.test < 1:
        raise StageError(f"--test: expected a fraction between 0 and 1, found {options.test}")
    if not 0 <= options.seed < 2**32:
        raise StageError(f"--seed: expected a number from 0 to 2**32 - 1, found {options.seed}")


def _write_array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], chunks: Iterable[np.ndarray]
) -> str:
    """Add a uint8 array to an npz in chunks, and return its SHA-256."""
    digest = hashlib.sha256()
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    # With ZipInfo's default time (1980) and a known size, equal arrays give identical files.
    info = zipfile.ZipInfo(f"{name}.npy")
    info.file_size = header.tell() + math.prod(shape)
    with archive.open(info, "w") as member:
        member.write(header.getvalue())
        for chunk in chunks:
            digest.update(chunk.data)
            member.write(chunk.data)
    return digest.hexdigest()


def write_npz(path: Path, published: imports.Published, classes: list[str]) -> dict[str, str]:
    """Write images and labels of each split under Keras's names, and return SHA-256 by array."""
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[name] for name in published.classes], np.uint8)
    splits = np.array(published.splits)
    shape = np.load(published.pixels, mmap_mode="r").shape[1:]
    digests = {}
    with zipfile.ZipFile(path, "w") as archive:
        for split in SPLITS:
            if not (kept := splits == split).any():
                continue
            masks = np.array_split(kept, range(256, len(kept), 256))
            chunks = read_chunks(published.pixels, 256)
            images = (chunk[mask] for chunk, mask in zip(chunks, masks, strict=True))
            key = f"{split}_images"
            count = int(kept.sum())
            digests[key] = _write_array(archive, KERAS_NAMES[key], (count, *shape), images)
            key = f"{split}_labels"
            digests[key] = _write_array(archive, KERAS_NAMES[key], (count,), [labels[kept]])
    return digests


def _inline(content: Any) -> Any:  # noqa: ANN401  # a list or a mapping
    """Convert a list or mapping to YAML that is written in one line."""
    node = CommentedSeq(content) if isinstance(content, list) else CommentedMap(content)
    node.fa.set_flow_style()
    return node


def file_of(name: str) -> Path:
    """Return the path of a dataset definition."""
    return DATASETS / f"{name}.yaml"


def read_own(name: str) -> str:
    """Read the definition of a dataset of this tool; a missing file is empty.

    Raises:
        StageError: The file is invalid, or was not created by this tool.
    """
    path = file_of(name)
    if not path.exists():
        return ""
    if "own" not in read_entry(path).sources:
        raise StageError(f"{path} was not created by this tool; choose another NAME")
    return path.read_text(encoding="utf-8")


def update_entry(text: str, name: str, entry: dict[str, Any]) -> str:
    """Update the text of a file in datasets/, and keep all comments.

    Args:
        text: Its content; empty for a new dataset.
        name: Name of the dataset.
        entry: Fields that follow from the images and the options.
    """
    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    if text:
        content = yaml.load(text)
        content.update({key: value for key, value in entry.items() if content.get(key) != value})
    else:
        own = {"own": {"folder": str(OWN), "files": _inline({"npz": f"{name}.npz"})}}
        content = {"title": name, "license": "not stated", **entry, "sources": own}
    written = io.StringIO()
    yaml.dump(content, written)
    return written.getvalue()


def make_entry(
    published: imports.Published, classes: list[str], digests: dict[str, str]
) -> dict[str, Any]:
    """Create the fields of a file in datasets/ that follow from the images."""
    counts = Counter(published.splits)
    image = np.load(published.pixels, mmap_mode="r").shape[1:]
    return {
        "classes": _inline(classes),
        "image": _inline([*image]),
        "images": _inline({split: counts[split] for split in SPLITS if counts[split]}),
        "sha256": digests,
    }


def track(path: Path) -> None:
    """Run `dvc add`."""
    command = [sys.executable, "-m", "dvc", "add", "--quiet", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise StageError(f"`dvc add` failed; nothing was changed: {reason}")


@contextmanager
def restoring(npz: Path, scratch: Path) -> Iterator[None]:
    """Restore a file and its .dvc file if the block fails."""
    record, old = npz.with_name(f"{npz.name}.dvc"), scratch / "old.npz"
    text = record.read_bytes() if record.exists() else b""
    try:
        if npz.exists():
            npz.rename(old)
        yield
    except BaseException:
        npz.unlink(missing_ok=True)
        record.unlink(missing_ok=True)
        if old.exists():
            old.rename(npz)
        if text:
            record.write_bytes(text)
        raise


def print_next(name: str, changed: Sequence[str], *, new: bool) -> None:
    """Print the written files, the changed lines of the definition, and the next commands."""
    npz = OWN / f"{name}.npz"
    print(f"{npz}: {npz.stat().st_size:,} bytes, tracked by DVC")
    print(f"{REPORTS / name}.md: this report")
    state = "new:" if new else "changed:" if changed else "unchanged"
    print(f"{file_of(name)}: {state}", *changed, sep="\n")
    print(
        "\nCommit it, and train on it:",
        f"    git add {file_of(name)} {npz}.dvc {REPORTS}",
        f'    git commit -m "Add {name}"',
        f"    dvc exp run -n {name} -S dataset={name}",
        sep="\n",
    )


def make(
    path: Path,
    options: imports.Options,
    chosen: dict[str, Any],
    track: Callable[[Path], None] | None = None,
) -> tuple[str, list[str]]:
    """Read images; write `data/own/NAME.npz`, `datasets/NAME.yaml` and its report.

    All files stay unchanged if it fails.

    Args:
        path: The images.
        options: Options of the command line.
        chosen: Fields of the entry that do not follow from the images.
        track: Called with the npz once it is in place.

    Returns:
        The report, and the changed lines of `datasets/NAME.yaml` as a diff.
    """
    check(options)
    name = options.name
    OWN.mkdir(parents=True, exist_ok=True)
    for stale in OWN.glob(f".partial-{name}.*"):  # left by an import that was killed
        shutil.rmtree(stale, ignore_errors=True)
    with TemporaryDirectory(prefix=f".partial-{name}.", dir=OWN) as scratch:
        published = imports.read(path, Path(scratch), options)
        before = read_own(name)
        prints = imports.fingerprints(published.pixels, options.seed)
        imports.split(published, prints, options.test)
        classes = imports.check_classes(published)
        written, npz = Path(scratch, "new.npz"), OWN / f"{name}.npz"
        entry = chosen | make_entry(published, classes, write_npz(written, published, classes))
        report = data_report.report(name, published, classes, prints)
        figure = data_report.samples(name, published, classes)
        with ExitStack() as stack:  # commits in reverse order, the dataset definition last
            file = stack.enter_context(replacing(file_of(name)))
            after = update_entry(before, name, entry)
            file.write_text(after, encoding="utf-8")
            read_entry(file)
            stack.enter_context(restoring(npz, Path(scratch)))
            write_figure(stack.enter_context(replacing(REPORTS / f"{name}.png")), figure)
            page = stack.enter_context(replacing(REPORTS / f"{name}.md"))
            page.write_text(report, encoding="utf-8")
            written.rename(npz)
            if track:
                track(npz)
    changed = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return report, [*changed][3:]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.dataset", description=__doc__)
    add = parser.add_argument
    add("name", metavar="NAME", help="name of the dataset")
    add("path", metavar="PATH", type=Path, help="folder, or zip, npz, CSV or IDX file")
    add("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="resize (default: median)")
    add("--gray", action="store_true", help="convert colors to gray")
    add("--test", type=float, default=0.2, help="fraction of test images if PATH has no test split")
    add("--seed", type=int, default=0, help="random seed of the test split")
    add("--title", help="title in figures; default: NAME")
    add("--flip", action="store_true", default=None, help="horizontal flips preserve the class")
    add("--transposed", action="store_true", help="rows and columns are swapped, as in EMNIST")
    args = parser.parse_args()
    size = tuple(args.size) if args.size else None
    options = imports.Options(args.name, size, args.gray, args.test, args.seed, args.transposed)
    given = {"title": args.title, "flip": args.flip}
    chosen = {key: value for key, value in given.items() if value is not None}
    new = not file_of(args.name).exists()
    report, changed = make(args.path, options, chosen, track)
    print(report)
    print_next(args.name, changed, new=new)


if __name__ == "__main__":
    run(main)
