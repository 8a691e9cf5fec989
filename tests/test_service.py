"""The service in this process: endpoints, limits, other models."""

import asyncio
import base64
import io
import json
import re
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.datastructures import FormData
from PIL import Image

from stages.lib.models.runtime import read_model
from stages.lib.stage import StageError
from tests.helpers import bars_model, described, small_mlp
from tests.serving import BAR, files, png, wait_until
from tools.lib import classifier, service

Result = TypeVar("Result")


async def send(app: FastAPI, method: str, address: str, **options: Any) -> httpx.Response:  # noqa: ANN401
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        return await client.request(method, address, **options)


def finish(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in another thread, since Playwright may run an event loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


@dataclass(frozen=True)
class Client:
    """Sends one request at a time to the app in this process."""

    app: FastAPI

    def get(self, address: str, **options: Any) -> httpx.Response:  # noqa: ANN401
        return finish(send(self.app, "GET", address, **options))

    def post(self, address: str, **options: Any) -> httpx.Response:  # noqa: ANN401
        return finish(send(self.app, "POST", address, **options))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file; Pillow's limit, which the service lowers, is restored after the test."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(bars_model())
    return tmp_path / "model.onnx"


@pytest.fixture
def app(path: Path) -> FastAPI:
    return service.create_app(path, ["localhost", "127.0.0.1"])


@pytest.fixture
def client(app: FastAPI) -> Client:
    return Client(app)


def test_images_are_classified_in_their_order(client: Client) -> None:
    response = client.post("/classify", files=files(png(), png(BAR.T)))
    assert response.status_code == 200
    horizontal, vertical = response.json()
    assert (horizontal["name"], horizontal["class"]) == ("0.png", "horizontal")
    assert (vertical["name"], vertical["class"]) == ("1.png", "vertical")
    assert horizontal["confidence"] == horizontal["probabilities"]["horizontal"] > 0.9
    assert sum(horizontal["probabilities"].values()) == pytest.approx(1)
    assert "seen" not in horizontal


def test_predictions_match_the_model_file(client: Client, path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 14, 14)).astype(np.uint8)
    images[:, [0, -1]] = images[:, :, [0, -1]] = 0
    found = client.post("/classify?seen=true", files=files(*map(png, images))).json()
    seen = np.stack([pixels(result["seen"]) for result in found])
    expected = read_model(path)(seen)
    probabilities = [list(result["probabilities"].values()) for result in found]
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def pixels(url: str) -> np.ndarray:
    kind, _, content = url.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_model_input_is_returned_on_request(client: Client) -> None:
    (result,) = client.post("/classify?seen=true", files=files(png())).json()
    assert pixels(result["seen"]).shape == (14, 14)


def test_invalid_file_does_not_affect_the_others(client: Client) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (50, 50), np.uint8)
    response = client.post("/classify", files=files(b"no image", png(), png(noise)[:500]))
    assert response.status_code == 200
    first, second, third = response.json()
    assert set(first) == {"name", "error"}
    assert "object at" not in first["error"]
    assert second["class"] == "horizontal"
    assert third["error"]


@pytest.mark.parametrize("error", [ValueError("not like this"), IndexError()])
def test_failed_preparation_is_an_error(
    client: Client, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(classifier.Classifier, "prepare", fail)
    response = client.post("/classify", files=files(png()))
    assert response.status_code == 422
    assert response.json()[0]["error"] == (str(error) or "IndexError")


def test_only_invalid_files_are_an_error(client: Client) -> None:
    response = client.post("/classify", files=files(b"", b"GIF89a"))
    assert response.status_code == 422
    assert [set(result) for result in response.json()] == [{"name", "error"}] * 2


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"files": "text"}},
        {"files": {"other": ("a.png", png())}},
        {"json": ["a.png"]},
        {"content": b"--x\r\nbroken", "headers": {"Content-Type": "multipart/form-data"}},
        {"content": b"broken", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {},
    ],
)
def test_a_request_without_files_is_rejected(client: Client, body: dict[str, Any]) -> None:
    response = client.post("/classify", **body)
    assert response.status_code == 400
    assert isinstance(response.json()["detail"], str)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\fakepath\\사진.png", "사진.png"),
        ("a" * 300 + ".png", "a" * service.NAME_LENGTH),
        ("a\u202egnp.exe\x07", "a\ufffdgnp.exe\ufffd"),
        ("<script>.png", "<script>.png"),
    ],
)
def test_names_lose_folders_and_control_characters(sent: str, shown: str) -> None:
    assert service.printable_name(sent) == shown


def test_class_names_may_be_in_any_script(path: Path) -> None:
    names = ['"</script>\\', "티셔츠/탑"]
    path.write_bytes(bars_model(names))
    client = Client(service.create_app(path, ["*"]))
    response = client.post("/classify", files=[("files", ("사진.png", png()))])
    assert response.json()[0]["probabilities"].keys() == set(names)
    assert response.json()[0]["name"] == "사진.png"
    assert client.get("/model").json()["classes"] == names


def test_model_and_health_describe_the_file(client: Client, path: Path) -> None:
    facts = client.get("/model").json()
    assert (facts["title"], facts["image"], facts["kind"]) == ("Bars", [14, 14], "mlp")
    assert client.get("/health").json() == {
        "status": "ok",
        "digest": facts["digest"],
        "problem": "",
    }
    answer = client.post("/classify", files=files(png()))
    assert answer.headers["X-Model-Digest"] == facts["digest"]


def test_color_models_get_color_images(path: Path) -> None:
    path.write_bytes(bars_model(color=True))
    client = Client(service.create_app(path, ["*"]))
    (result,) = client.post("/classify?seen=true", files=files(png())).json()
    assert result["class"] == "horizontal"
    assert pixels(result["seen"]).shape == (14, 14, 3)


def test_every_status_is_documented(client: Client) -> None:
    schema = client.get("/openapi.json").json()
    responses = schema["paths"]["/classify"]["post"]["responses"]
    assert set(responses) == {"200", "400", "403", "408", "413", "422", "503"}
    assert set(schema["paths"]) == {"/classify", "/model", "/health"}
    assert "class" in schema["components"]["schemas"]["Classification"]["properties"]


@pytest.mark.parametrize("address", ["/", "/docs", "/page/serve.js", "/page/serve.css"])
def test_pages_load_nothing_from_other_hosts(client: Client, address: str) -> None:
    response = client.get(address)
    assert response.status_code == 200
    text = response.text.replace("http://www.w3.org/2000/svg", "")
    assert "//" not in text.replace("// ", "")
    assert "innerHTML" not in text
    assert re.search(r"\son\w+=", text) is None
    assert "style=" not in text


@pytest.mark.parametrize(
    "address",
    ["%2e%2e/report/report.html", "%2e%2e/%2e%2e/service.py", "%2fetc/passwd", "", "report.html"],
)
def test_files_outside_the_page_are_not_served(client: Client, address: str) -> None:
    """Dots are encoded because httpx resolves plain ones."""
    assert client.get("/page/serve.js").status_code == 200
    assert client.get(f"/page/{address}").status_code == 404


def test_too_many_files_are_rejected(client: Client) -> None:
    allowed = service.REQUEST_FILES
    assert client.post("/classify", files=files(*[png()] * allowed)).status_code == 200
    response = client.post("/classify", files=files(*[png()] * (allowed + 1)))
    assert response.status_code == 400
    assert str(allowed) in response.json()["detail"]


@pytest.mark.parametrize("announced", [True, False])
def test_too_many_bytes_are_rejected(
    client: Client, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    """Their number is declared in the header or counted over chunks."""
    monkeypatch.setattr(service, "REQUEST_BYTES", 2000)
    assert client.post("/classify", files=files(png())).status_code == 200
    request = httpx.Request("POST", "http://host", files=files(b"0" * 2000))
    content, kind = request.read(), {"Content-Type": request.headers["Content-Type"]}

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 500):
            yield content[start : start + 500]

    response = client.post("/classify", content=content if announced else chunks(), headers=kind)
    assert response.status_code == 413
    assert response.json() == {"detail": "a request may have at most 2,000 bytes"}


def test_too_many_pixels_are_rejected(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Image.MAX_IMAGE_PIXELS == service.PIXELS == 50_000_000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
    small, large = (png(np.zeros((side, 100), np.uint8)) for side in (100, 101))
    first, second = client.post("/classify", files=files(small, large)).json()
    assert "class" in first
    assert "10100 pixels" in second["error"]


def test_other_hosts_are_rejected(client: Client) -> None:
    """DNS rebinding lets the name of a foreign page resolve to this machine."""
    for host, status in {"localhost:8000": 200, "127.0.0.1": 200, "rebound.test": 400}.items():
        assert client.get("/model", headers={"Host": host}).status_code == status


def test_pages_of_other_sites_are_rejected(client: Client) -> None:
    for origin, status in {
        "http://127.0.0.1:8000": 200,
        "http://127.0.0.1:8001": 403,
        "https://example.org": 403,
        "null": 403,
        "http://[": 403,
    }.items():
        response = client.post("/classify", files=files(png()), headers={"Origin": origin})
        assert response.status_code == status


def test_busy_service_returns_retry_after(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """All slots are taken by requests whose images are being classified."""
    release = threading.Event()
    prepare, receive_form = classifier.Classifier.prepare, service.receive_form
    started = 0

    def slow(self: classifier.Classifier, file: IO[bytes]) -> classifier.Prepared:
        release.wait(20)
        return prepare(self, file)

    def count(request: Request) -> AbstractAsyncContextManager[FormData]:
        nonlocal started
        started += 1
        return receive_form(request)

    monkeypatch.setattr(classifier.Classifier, "prepare", slow)
    monkeypatch.setattr(service, "receive_form", count)

    async def more_than_fit() -> list[httpx.Response]:
        tasks = [
            asyncio.create_task(send(app, "POST", "/classify", files=files(png())))
            for _ in range(service.REQUESTS)
        ]
        await asyncio.to_thread(wait_until, lambda: started == service.REQUESTS)
        refused = await send(app, "POST", "/classify", files=files(png()))
        release.set()
        return [refused, *await asyncio.gather(*tasks)]

    refused, *answered = finish(more_than_fit())
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert {response.status_code for response in answered} == {200}


def test_request_that_waits_too_long_is_rejected(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "QUEUE_SECONDS", 0.2)
    release = threading.Event()
    monkeypatch.setattr(classifier.Classifier, "prepare", lambda *_: release.wait(10))

    async def wait() -> httpx.Response:
        response = await send(app, "POST", "/classify", files=files(png()))
        release.set()
        return response

    assert finish(wait()).status_code == 503


def replace(path: Path, content: bytes) -> None:
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").replace(path)


def test_new_model_is_served_without_a_restart(client: Client, path: Path) -> None:
    replace(path, bars_model(["across", "down"], title="New"))
    assert client.post("/classify", files=files(png())).json()[0]["class"] == "across"
    assert client.get("/model").json()["title"] == "New"
    replace(path, small_mlp(*described()))
    assert client.get("/model").json()["image"] == [6, 5]


def test_old_model_remains_if_the_new_one_is_invalid(
    client: Client, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in (bars_model()[:900], b"<html>", b""):
        replace(path, content)
        assert client.post("/classify", files=files(png())).json()[0]["class"] == "horizontal"
        assert client.get("/model").json()["title"] == "Bars"
        health = client.get("/health").json()
        assert health["status"] == "stale"
        assert health["problem"].startswith("model.onnx: ")
        assert str(path.parent) not in json.dumps(health)
        lines = capsys.readouterr().err.splitlines()
        assert lines == [f"serve: {health['problem']}; the previous model is served"]
    replace(path, bars_model(title="Repaired"))
    assert client.get("/model").json()["title"] == "Repaired"
    assert client.get("/health").json()["status"] == "ok"


def test_old_model_remains_if_the_file_is_missing(
    client: Client, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.rename(path.with_suffix(".old"))
    assert client.post("/classify", files=files(png())).json()[0]["class"] == "horizontal"
    assert client.get("/health").json()["problem"] == "model.onnx: no such file"
    assert len(capsys.readouterr().err.splitlines()) == 1
    path.with_suffix(".old").rename(path)
    assert client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("damaged", [classifier.SCORES, Path("datasets/bars.yaml")])
@pytest.mark.parametrize("content", [b"{", b"\xff"])
def test_old_model_remains_if_scores_are_damaged(path: Path, damaged: Path, content: bytes) -> None:
    for folder in ("data", "reports", "datasets"):
        Path(folder).mkdir()
    path.rename(classifier.MODEL)
    client = Client(service.create_app(classifier.MODEL, ["*"]))
    damaged.write_bytes(content)
    assert client.post("/classify", files=files(png())).json()[0]["class"] == "horizontal"
    health = client.get("/health").json()
    assert (health["status"], bool(health["problem"])) == ("stale", True)
    damaged.unlink()
    assert client.get("/health").json()["status"] == "ok"


def test_model_replaced_during_reading_is_reread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = service.Served(path)
    old, read = served.classifier, service.read_warm

    def read_and_replace(path: Path) -> classifier.Classifier:
        monkeypatch.setattr(service, "read_warm", read)
        found = read(path)
        replace(path, bars_model(title="Newest"))
        return found

    monkeypatch.setattr(service, "read_warm", read_and_replace)
    replace(path, bars_model(title="New"))
    assert served.current() is old
    assert served.current().model.title == "Newest"


def test_invalid_model_is_rejected_at_startup(path: Path) -> None:
    path.write_bytes(b"<html>")
    with pytest.raises(StageError, match="not a model file"):
        service.create_app(path, ["*"])
