"""Read images of any supported layout into one uint8 array, with class names and splits."""

import os
import re
import sys
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from stages.lib.files import DAMAGED, read_chunks, write_chunks
from stages.lib.sources import pictures
from stages.lib.stage import StageError, is_printable
from tools.lib import arrays
from tools.lib.decoding import decode_files

FOLDERS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
FOLDERS |= dict.fromkeys(("val", "valid", "validation"), "validation")


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    name: str
    size: tuple[int, int] | None = None
    gray: bool = False
    test: float = 0.2
    seed: int = 0
    transposed: bool = False


@dataclass
class Published:
    """Images as published: one array on disk, and the class, split and name of each image.

    `pixels` is a .npy of shape (n, height, width) or (n, height, width, 3), uint8. A split is
    train, validation, test, or empty if the images are yet to be split.
    """

    pixels: Path
    classes: list[str]
    splits: list[str]
    names: list[str]
    sizes: Counter[str] = field(default_factory=Counter)  # such as "PNG L, 28 x 28"
    notes: list[str] = field(default_factory=list)


def natural(text: str) -> list[tuple[int, str]]:
    """Return a key for natural sort order, in which 2 comes before 10."""
    parts = re.split(r"(\d+)", text)
    return [(int(p), "") if p.isdecimal() else (-1, p.casefold()) for p in parts] + [(-1, text)]


def walk(folder: Path, skipped: Counter[str], prefix: str = "") -> Iterator[str]:
    """Yield relative paths of files below a folder in natural order; count skipped ones."""
    entries = sorted(os.scandir(folder / prefix), key=lambda entry: natural(entry.name))
    if not entries:
        skipped["empty folders"] += 1
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in ("thumbs.db", "desktop.ini"):
            skipped["hidden files and thumbnails"] += 1
        elif entry.name == "__MACOSX":
            skipped["__MACOSX"] += 1
        elif entry.is_symlink() and (entry.is_dir() or not _inside(Path(entry.path), folder)):
            skipped["links to folders or out of the given path"] += 1
        elif entry.is_dir():
            yield from walk(folder, skipped, f"{prefix}{entry.name}/")
        elif entry.is_file():
            yield f"{prefix}{entry.name}"
        else:
            skipped["other files"] += 1


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def unzip(path: Path, folder: Path) -> None:
    """Extract a zip; members stay inside `folder`, and links become plain files."""
    try:
        with arrays.check_archive(path) as archive:
            archive.extractall(folder)
    except DAMAGED as error:
        if isinstance(error, OSError) and not isinstance(error, zipfile.BadZipFile):
            raise
        raise StageError(f"{path.name}: not a valid zip file: {error}") from error


def _has_classes(file: str) -> bool:
    """Return whether a file is in a subfolder of the train folder."""
    return FOLDERS.get(file.partition("/")[0].lower()) == "train" and file.count("/") > 1


def _read_folder(root: Path, files: list[str], scratch: Path, options: Options) -> Published:
    """Read FOLDER/CLASS/files, or FOLDER/SPLIT/CLASS/files."""
    tops = {file.partition("/")[0] for file in files if "/" in file}
    depth = 0
    if any(FOLDERS.get(top.lower()) == "train" for top in tops):
        others = [top for top in sorted(tops, key=natural) if top.lower() not in FOLDERS]
        depth = int(not others)
        if others and any(_has_classes(file) for file in files):
            raise StageError(
                f"{root}: expected only folders of splits next to train, found {', '.join(others)}"
            )
    kept, classes, splits = [], [], []
    for file in files:
        parts = file.split("/", depth + 1)
        split = FOLDERS.get(parts[0].lower()) if depth else ""
        if split is not None and len(parts) > depth + 1:
            kept.append(file)
            classes.append(sys.intern(unicodedata.normalize("NFC", parts[depth])))
            splits.append(split)
    if not kept:
        raise StageError(f"{root}: expected a folder for each class, found images without one")
    target = scratch / "decoded.npy"
    published = Published(
        target, classes, splits, kept, decode_files(root, kept, target, options.size, options.gray)
    )
    if len(kept) < len(files):
        published.notes.append(f"skipped, images outside class folders: {len(files) - len(kept):,}")
    return published


def _read_arrays(files: list[Path], scratch: Path, options: Options) -> Published:
    """Read npz, CSV or IDX files."""
    notes: list[str] = []
    found = arrays.read_arrays(files, options.name, notes)
    splits = [split for split in ("train", "validation", "test", "") if (split, "images") in found]
    if not splits or {s for s, _ in found} != set(splits):
        raise StageError(
            "expected images and labels of each split, found "
            + (", ".join(f"{split} {kind}".strip() for split, kind in found) or "none")
        )
    if "" in splits and len(splits) > 1:
        raise StageError(f"expected names with train and test, found {splits[:-1]} and one without")
    labels: list[str] = []
    parts: list[np.ndarray] = []
    rows: list[str] = []
    for split in splits:
        where = split or "the file"
        if (split, "labels") not in found:
            raise StageError(f"{where}: expected labels for the images, found none")
        own = arrays.label_names(f"{where}: labels", found[split, "labels"])
        if len(own) != len(found[split, "images"]) or not own:
            raise StageError(
                f"{where}: expected a label for each image, found {len(own):,} labels and "
                f"{len(found[split, 'images']):,} images"
            )
        labels += own
        rows += [split] * len(own)
        parts.append(arrays.shaped(found[split, "images"], options.size, options.transposed))
    if len(shapes := {part.shape[1:] for part in parts}) > 1:
        raise StageError(f"expected images of one shape in all splits, found {sorted(shapes)}")
    parts = arrays.gray_levels(parts, splits, notes)
    shape = options.size or parts[0].shape[1:3]
    sizes = Counter({f"array, {' x '.join(map(str, parts[0].shape[1:]))}": len(rows)})
    target = scratch / "decoded.npy"
    if shape == parts[0].shape[1:3]:
        fitted: Iterator[np.ndarray] = iter(parts)
    else:
        fitted = (pictures.fit(np.ascontiguousarray(i), *shape)[None] for p in parts for i in p)
    write_chunks(target, (len(rows), *shape, *parts[0].shape[3:]), np.uint8, fitted)
    names = [f"{split or 'image'} {i}" for split in splits for i in range(rows.count(split))]
    return Published(target, labels, rows, names, sizes, notes)


def _to_gray(published: Published, scratch: Path, always: bool) -> None:
    """Convert color images to luma, if always or if red, green and blue are equal everywhere."""
    shape = np.load(published.pixels, mmap_mode="r").shape
    if len(shape) == 3:
        return
    chunks = read_chunks(published.pixels, 256)
    if not always and not all((chunk == chunk[..., :1]).all() for chunk in chunks):
        return
    published.notes.append("converted to gray" if always else "gray images stored in color")
    luma = np.array([19595, 38470, 7471], np.uint32)  # ITU-R BT.601 in 16 bits, as in Pillow
    chunks = ((c @ luma + 32768 >> 16).astype(np.uint8) for c in read_chunks(published.pixels, 256))
    target = scratch / "gray.npy"
    write_chunks(target, shape[:3], np.uint8, chunks)
    published.pixels = target


def _skip_wrappers(root: Path, files: list[str], skipped: Counter[str]) -> tuple[Path, list[str]]:
    """Descend into folders that wrap all class folders, as in most zips.

    Files next to such a folder are skipped.
    """
    while below := [file for file in files if "/" in file]:
        top = below[0].partition("/")[0]
        if not all(file.startswith(f"{top}/") and file.count("/") > 1 for file in below):
            break
        tables = any("/" not in file and arrays.SUFFIXES.search(file) for file in files)
        if tables and not any(file.lower().endswith(pictures.SUFFIXES) for file in below):
            break
        skipped["files next to the only folder"] += len(files) - len(below)
        root, files = root / top, [file.removeprefix(f"{top}/") for file in below]
    return root, files


def read(path: Path, scratch: Path, options: Options) -> Published:
    """Read images of any supported layout.

    Args:
        path: A folder of class folders or of npz, CSV or IDX files, a zip of it, or such a file.
        scratch: Folder for temporary files.
        options: Options of the command line.

    Raises:
        StageError: The layout is not supported, or images were rejected; each one is printed.
    """
    if not path.exists():
        raise StageError(f"{path}: no such file or folder")
    skipped: Counter[str] = Counter()
    root = path
    if path.is_file() and zipfile.is_zipfile(path) and path.suffix.lower() != ".npz":
        root = scratch / "unzipped"
        unzip(path, root)
    if root.is_dir():
        root, files = _skip_wrappers(root, list(walk(root, skipped)), skipped)
    else:
        root, files = root.parent, [root.name]
    images = [file for file in files if file.lower().endswith(pictures.SUFFIXES)]
    tables = [] if images else [root / file for file in files if arrays.SUFFIXES.search(file)]
    skipped["other files"] += len(files) - len(images) - len(tables)
    archives = [file for file in files if file.lower().endswith(".zip")]
    if archives and root != path.parent and not images and not tables:
        raise StageError(f"{archives[0]}: nested zip; unpack it first")
    if not images and not tables:
        raise StageError(f"{path}: expected images, npz, CSV or IDX files, found none")
    if images and path.samefile(root / images[0]):
        raise StageError(f"{path}: expected a folder with a folder for each class, found an image")
    published = (
        _read_folder(root, images, scratch, options)
        if images
        else _read_arrays(tables, scratch, options)
    )
    published.notes += [f"skipped, {what}: {count:,}" for what, count in skipped.items() if count]
    _to_gray(published, scratch, options.gray)
    return published


def fingerprints(pixels: Path, seed: int) -> np.ndarray:
    """Hash each image with the seed as key; return shape (n,), uint64.

    Sorting by hash gives a random order that depends only on the seed and the pixels.
    """
    key = seed.to_bytes(8)
    digests = (
        int.from_bytes(blake2b(image.data, digest_size=8, key=key).digest())
        for chunk in read_chunks(pixels, 256)
        for image in chunk
    )
    return np.fromiter(digests, np.uint64)


def split(published: Published, prints: np.ndarray, share: float) -> None:
    """Move a share of each class's training images to the test split, if none is published.

    The choice depends only on the seed and the pixels, not on names or order, and identical images
    stay together. Duplicates of published validation images stay in training.
    """
    splits = np.array([name or "train" for name in published.splits])
    published.splits = splits.tolist()
    if "test" in published.splits:
        return
    classes = np.array(published.classes)
    fixed = set(prints[splits == "validation"].tolist())
    moved: set[int] = set()
    for name in sorted(set(published.classes)):
        rows = np.flatnonzero((classes == name) & (splits == "train"))
        order = rows[np.argsort(prints[rows], kind="stable")]
        wanted = max(1, round(share * len(rows)))
        count = sum(int(value) in moved for value in prints[rows])
        for value, copies in Counter(prints[order].tolist()).items():
            free = value not in moved and value not in fixed
            if free and count < wanted and count + copies < len(rows):
                moved.add(value)
                count += copies
    splits[np.isin(prints, list(moved)) & (splits == "train")] = "test"
    published.splits = splits.tolist()
    published.notes.append(f"test split: {share:.0%} of each class, selected by seed and pixels")


def check_classes(published: Published) -> list[str]:
    """Return the classes in natural order.

    Raises:
        StageError: There are fewer than 2 or more than 256 classes, a class has no training images
            or an unprintable name, or there are no test images.
    """
    classes = sorted(set(published.classes), key=natural)
    train = {c for c, s in zip(published.classes, published.splits, strict=True) if s == "train"}
    faults = []
    if not 2 <= len(classes) <= 256:
        faults.append(f"expected 2 to 256 classes, found {len(classes)}: {', '.join(classes[:5])}")
    if missing := [name for name in classes if name not in train]:
        faults.append(f"expected training images of each class, found none of {', '.join(missing)}")
    if odd := [name for name in classes if not is_printable(name)]:
        faults.append(f"expected printable class names, found {odd!r}")
    if "test" not in published.splits:
        faults.append("too few distinct images to hold out a test split")
    if faults:
        raise StageError("; ".join(faults))
    return classes
