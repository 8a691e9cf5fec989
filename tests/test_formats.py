"""Each parser: accepted and rejected files, and error messages."""

import gzip
import io
import os
import re
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages.lib.sources.formats import read_csv, read_idx, read_npz
from stages.lib.stage import StageError
from tests.helpers import idx

SHAPE = (4, 3, 2)
IMAGES = np.arange(232, 256, dtype=np.uint8).reshape(SHAPE)
LABELS = np.array([3, 0, 255, 1], np.uint8)
PAGE = b"\n <!DOCTYPE html><title>Sign in</title>"
BOMB = bytes(16_000_000)


def zipped(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def damaged(archive: bytes) -> bytes:
    """A zip whose last file no longer matches its checksum."""
    at = archive.rindex(b"PK\x01\x02") + 16
    return archive[:at] + bytes([archive[at] ^ 0xFF]) + archive[at + 1 :]


def named(name: str, *more: str) -> bytes:
    """A zip of the good IDX file under these names, written as given."""
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w") as archive,
        warnings.catch_warnings(action="ignore"),
    ):  # about a duplicate name
        for one in (name, *more):
            archive.writestr(zipfile.ZipInfo(one), idx(IMAGES))
    return packed.getvalue()


def encrypted(archive: bytes) -> bytes:
    """A zip whose files are marked as encrypted."""
    content = bytearray(archive)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(mark, at + 1)) >= 0:
            content[at + offset] |= 1
    return bytes(content)


def linked(target: str) -> bytes:
    """A zip of a symlink."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        member = zipfile.ZipInfo("images")
        member.create_system, member.external_attr = 3, 0o120777 << 16
        archive.writestr(member, target)
    return packed.getvalue()


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of npy 2.0, which old numpy cannot read
        np.lib.format.write_array(content, array, version, allow_pickle=True)
    return content.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    return zipped(**{f"{name}.npy": npy(array) for name, array in arrays.items()})


def csv(
    images: np.ndarray = IMAGES, labels: np.ndarray = LABELS, header: bool = True, end: str = "\n"
) -> bytes:
    names = ["label", *(f"pixel{n}" for n in range(1, 7))]
    rows = [[label, *image.ravel()] for label, image in zip(labels, images, strict=True)]
    return "".join(",".join(map(str, row)) + end for row in [names] * header + rows).encode()


def with_cell(cell: str) -> bytes:
    """The good CSV with another cell in its third row."""
    return csv().replace(b"255,244,", f"255,{cell},".encode())


def read(parser: str, path: Path) -> list[np.ndarray]:
    if parser == "idx":
        return [read_idx(path, SHAPE)]
    if parser == "npz":
        return [*read_npz(path, {"images": SHAPE, "labels": (4,)}).values()]
    return [*read_csv(path, SHAPE)]


@pytest.mark.parametrize(
    ("parser", "content"),
    [
        pytest.param("idx", idx(IMAGES), id="idx"),
        pytest.param("idx", gzip.compress(idx(IMAGES)), id="idx-gzip"),
        pytest.param("idx", zipped(any_name=idx(IMAGES)), id="idx-zip"),
        pytest.param("npz", npz(images=IMAGES, labels=LABELS), id="npz"),
        pytest.param("npz", npz(labels=LABELS, images=IMAGES), id="npz-reordered"),
        pytest.param("csv", csv(), id="csv"),
        pytest.param("csv", csv()[:-1], id="csv-no-last-line-feed"),
        pytest.param("csv", csv(end="\r\n"), id="csv-windows"),
        pytest.param("csv", gzip.compress(csv()), id="csv-gzip"),
        pytest.param("csv", zipped(any_name=csv()), id="csv-zip"),
    ],
)
def test_published_formats_are_accepted(parser: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    arrays = read(parser, tmp_path / "file")
    for array, expected in zip(arrays, [IMAGES, LABELS], strict=False):
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, expected)


VALID = "a valid archive"
IDX = r"IDX of unsigned bytes, shape \(4, 3, 2\)"
SIZE = r"at most [\d,]+ bytes"
NUMBERS = "whole numbers from 0 to 255"
HEADER = "a header of label and 6 pixels"
GOOD_NPZ = {"images": IMAGES, "labels": LABELS}


@pytest.mark.parametrize(
    ("parser", "content", "expected", "found"),
    [
        pytest.param("idx", PAGE, IDX, "a web page", id="idx-page"),
        pytest.param("idx", b"", IDX, "0 bytes", id="idx-empty"),
        pytest.param(
            "idx",
            b"\0\0\x0d" + idx(IMAGES)[3:],
            IDX,
            r"40 bytes that start with .*\\r\\x03",
            id="idx-magic",
        ),
        pytest.param(
            "idx",
            idx(IMAGES.reshape(3, 4, 2)),
            IDX,
            r"40 bytes that start with",
            id="idx-other-shape",
        ),
        pytest.param(
            "idx", idx(IMAGES.ravel()), IDX, r"32 bytes that start with", id="idx-fewer-dimensions"
        ),
        pytest.param(
            "idx", idx(IMAGES)[:-1], r"40 bytes for shape \(4, 3, 2\)", "39", id="idx-short"
        ),
        pytest.param("idx", idx(IMAGES) + b"\0", SIZE, "more", id="idx-long"),
        pytest.param(
            "idx", gzip.compress(idx(IMAGES))[:-9], VALID, "ended before", id="idx-gzip-cut"
        ),
        pytest.param(
            "idx", gzip.compress(idx(IMAGES))[:-8] + bytes(8), VALID, "CRC", id="idx-gzip-damaged"
        ),
        pytest.param("idx", b"\x1f\x8b\x08\0", VALID, "ended before", id="idx-gzip-empty"),
        pytest.param(
            "idx", zipped(a=idx(IMAGES), b=b""), "a zip of one file", "2", id="idx-zip-of-two"
        ),
        pytest.param("idx", zipped(a=idx(IMAGES))[:-9], VALID, "not a zip", id="idx-zip-cut"),
        pytest.param("idx", damaged(zipped(a=idx(IMAGES))), VALID, "CRC", id="idx-zip-damaged"),
        pytest.param(
            "idx",
            b"\0\0\x08\3" + b"\xff" * 12 + IMAGES.tobytes(),
            IDX,
            r"40 bytes that start with .*\\xff",
            id="idx-overflow",
        ),
        pytest.param(
            "idx",
            gzip.compress(idx(IMAGES)) + b"more",
            VALID,
            "Not a gzipped file",
            id="idx-gzip-trailing-bytes",
        ),
        pytest.param(
            "idx",
            named("/etc/images"),
            "a file inside",
            "'/etc/images'",
            id="idx-zip-absolute-path",
        ),
        pytest.param(
            "idx",
            named("a/../../images"),
            "a file inside",
            r"'a/\.\./\.\./i",
            id="idx-zip-path-upwards",
        ),
        pytest.param("idx", named("a", "a"), "a zip of one file", "2", id="idx-zip-duplicate"),
        pytest.param(
            "idx",
            linked("/etc/passwd"),
            IDX,
            "11 bytes that start with b'/etc/pass",
            id="idx-zip-symlink",
        ),
        pytest.param("idx", encrypted(named("a")), VALID, "encrypted", id="idx-zip-encrypted"),
        pytest.param(
            "npz", encrypted(npz(**GOOD_NPZ)), "a valid npz file", "encrypted", id="npz-encrypted"
        ),
        pytest.param(
            "npz",
            named("images.npy", "labels.npy", "images.npy"),
            "arrays images, labels",
            "images",
            id="npz-duplicate",
        ),
        pytest.param("idx", gzip.compress(BOMB), SIZE, "more", id="idx-gzip-bomb"),
        pytest.param("idx", zipped(a=BOMB), SIZE, "more", id="idx-zip-bomb"),
        pytest.param("npz", PAGE, "an npz", "a web page", id="npz-page"),
        pytest.param(
            "npz",
            npz(**GOOD_NPZ)[:-9],
            "an npz",
            r"[\d,]+ bytes that start with b['\"]PK",  # the zip's time may contain a quote
            id="npz-cut",
        ),
        pytest.param("npz", damaged(npz(**GOOD_NPZ)), "a valid npz file", "CRC", id="npz-damaged"),
        pytest.param(
            "npz",
            npz(images=IMAGES),
            "arrays images, labels",
            r"images\.npy'$",
            id="npz-missing-key",
        ),
        pytest.param(
            "npz",
            npz(**GOOD_NPZ, z=LABELS),
            "arrays images, labels",
            r"z\.npy'$",
            id="npz-extra-key",
        ),
        pytest.param(
            "npz",
            npz(images=IMAGES.astype(">i4"), labels=LABELS),
            "uint8",
            ">i4 of shape",
            id="npz-dtype",
        ),
        pytest.param(
            "npz",
            npz(images=IMAGES[:3], labels=LABELS),
            r"shape \(4, 3, 2\)",
            r"\(3, 3, 2\)",
            id="npz-rows",
        ),
        pytest.param(
            "npz",
            npz(images=np.asfortranarray(IMAGES), labels=LABELS),
            "C order",
            "Fortran order",
            id="npz-fortran",
        ),
        pytest.param(
            "npz",
            zipped(**{"images.npy": npy(IMAGES, (2, 0)), "labels.npy": npy(LABELS)}),
            r"npy version 1\.0",
            r"\(2, 0\)",
            id="npz-version",
        ),
        pytest.param(
            "npz",
            zipped(**{"images.npy": npy(IMAGES)[:-1], "labels.npy": npy(LABELS)}),
            "a valid npz file",
            "size 23",
            id="npz-short-array",
        ),
        pytest.param(
            "npz",
            zipped(**{"images.npy": npy(IMAGES) + BOMB, "labels.npy": npy(LABELS)}),
            SIZE,
            "more",
            id="npz-bomb",
        ),
        pytest.param(
            "npz",
            zipped(
                **{
                    "images.npy": npy(np.zeros((10_000, 3, 2), np.uint8)).replace(
                        b"10000", b"1" + b"0" * 11, 1
                    )
                },
                **{"labels.npy": npy(LABELS)},
            ),
            r"shape \(4, 3, 2\)",
            r"\(100000000000, 3, 2\)",
            id="npz-huge-shape",
        ),
        pytest.param("csv", PAGE, HEADER, "a web page", id="csv-page"),
        pytest.param(
            "csv",
            csv(header=False),
            HEADER,
            r"\d+ bytes that start with b'3,232",
            id="csv-no-header",
        ),
        pytest.param("csv", csv().replace(b",pixel6", b""), HEADER, "bytes", id="csv-header-short"),
        pytest.param(
            "csv", csv().replace(b"label,", b"label,id,"), HEADER, "bytes", id="csv-header-long"
        ),
        pytest.param(
            "csv", csv()[: csv().index(b"\n") + 1], NUMBERS, "No columns", id="csv-header-only"
        ),
        pytest.param(
            "csv", with_cell("244,244"), NUMBERS, "Expected 7 fields", id="csv-extra-cell"
        ),
        pytest.param(
            "csv",
            csv().replace(b"255,244,", b"255,"),
            NUMBERS,
            "NA values",
            id="csv-missing-cell",
        ),
        pytest.param("csv", with_cell("1.5"), NUMBERS, ".", id="csv-float"),
        pytest.param("csv", with_cell(""), NUMBERS, "NA values", id="csv-empty-cell"),
        pytest.param("csv", with_cell("256"), NUMBERS, ".", id="csv-256"),
        pytest.param("csv", with_cell("-1"), NUMBERS, ".", id="csv-minus-1"),
        pytest.param("csv", with_cell("nan"), NUMBERS, "NA values", id="csv-nan"),
        pytest.param("csv", with_cell("inf"), NUMBERS, ".", id="csv-inf"),
        pytest.param(
            "csv",
            b"\xef\xbb\xbf" + csv(),
            HEADER,
            r"bytes that start with b'\\xef\\xbb",
            id="csv-bom",
        ),
        pytest.param("csv", csv().replace(b"\n", b"\n\n"), NUMBERS, ".", id="csv-empty-lines"),
        pytest.param("csv", csv() + b"\n", NUMBERS, ".", id="csv-trailing-empty-line"),
        pytest.param("csv", with_cell("white"), NUMBERS, "white", id="csv-word"),
        pytest.param(
            "csv", csv(IMAGES[:3], LABELS[:3]), "4 rows of 7", "3 of 7", id="csv-missing-row"
        ),
        pytest.param(
            "csv", csv() + b"1,2,3,4,5,6,7\n", "4 rows of 7", "5 of 7", id="csv-extra-row"
        ),
        pytest.param(
            "csv",
            b"".join(line + b",0\n" for line in csv().splitlines()).replace(b"pixel6,0", b"pixel6"),
            "4 rows of 7",
            "4 of 8",
            id="csv-extra-column",
        ),
        pytest.param("csv", gzip.compress(csv() + BOMB), SIZE, "more", id="csv-gzip-bomb"),
        pytest.param("csv", gzip.compress(csv())[:-9], VALID, "ended before", id="csv-gzip-cut"),
        pytest.param("csv", zipped(a=csv(), b=b""), "a zip of one file", "2", id="csv-zip-of-two"),
    ],
)
def test_invalid_file_is_rejected_in_one_line(
    parser: str, content: bytes, expected: str, found: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(StageError) as caught:
        read(parser, tmp_path / "file")
    message = str(caught.value)
    assert message.splitlines() == [message]
    fault = rf"(expected .*{expected}.*, found:?|not {expected}:) .*{found}"
    assert re.search(rf"^file: (\w+: )?{fault}", message), message


@pytest.mark.parametrize(
    ("parser", "content"),
    [
        pytest.param("idx", gzip.compress(BOMB), id="gzip"),
        pytest.param("idx", zipped(a=BOMB), id="zip"),
        pytest.param("csv", gzip.compress(csv() + BOMB), id="csv"),
        pytest.param(
            "npz",
            zipped(**{"images.npy": npy(IMAGES) + BOMB, "labels.npy": npy(LABELS)}),
            id="member-of-npz",
        ),
    ],
)
def test_oversized_content_uses_little_memory(parser: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(StageError):
            read(parser, tmp_path / "file")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(BOMB) / 8


class Payload:
    """Create a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_object_array_is_never_unpickled(tmp_path: Path) -> None:
    objects = np.array([Payload(tmp_path / "ran")], object)
    (tmp_path / "file").write_bytes(npz(images=objects, labels=LABELS))
    with pytest.raises(
        StageError, match=r"^file: images: expected uint8 .*, found object of shape \(1,\)"
    ):
        read("npz", tmp_path / "file")
    assert not (tmp_path / "ran").exists()
