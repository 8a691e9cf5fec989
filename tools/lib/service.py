"""HTTP service that classifies uploaded images: endpoints, limits, and the page.

Requests are not trusted. Inference uses one thread, because Pillow's protection against
decompression bombs is not thread-safe, and so that only one large image at a time is in memory.
"""

import asyncio
import base64
import io
import re
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response, UploadFile
from fastapi.datastructures import FormData
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from pydantic import BaseModel, Field

from stages.lib.sources.catalog import dataset_files
from stages.lib.sources.pictures import UNREADABLE
from stages.lib.stage import StageError
from tools.lib.classifier import SCORES, Classifier, read_classifier

PAGE = Path(__file__).parent / "page/serve"
REQUEST_BYTES = 32 * 2**20
REQUEST_FILES = 64
PIXELS = 50_000_000  # maximum per image
UPLOAD_SECONDS = 30  # timeout for receiving a request
QUEUE_SECONDS = 30  # timeout for classifying the files of a request
REQUESTS = 32  # maximum number of requests uploading or waiting
NAME_LENGTH = 100
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
UPLOAD = {  # FastAPI would parse the form before any limit could be set
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            }
        },
    }
}

BUSY = HTTPException(503, "busy", {"Retry-After": "1"})


class Classification(BaseModel):
    """The prediction for one file."""

    name: str = Field(description="file name without folders")
    label: str = Field(serialization_alias="class", description="most likely class")
    confidence: float = Field(description="probability of that class")
    probabilities: dict[str, float] = Field(description="by class, sum to 1")
    steps: list[str] = Field(description="preprocessing steps")
    unusual: bool | None = Field(None, description="unlike the training data; absent if unknown")
    seen: str | None = Field(None, description="the model's input as a data URL of a PNG")


class Rejection(BaseModel):
    """The error for a file that was not classified."""

    name: str
    error: str


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "No files, too many, not multipart, truncated, or an invalid Host header"},
    403: {"description": "Cross-site request"},
    408: {"description": "Not received in time"},
    413: {"description": "Too many bytes"},
    422: {"description": "None of the files is valid", "model": list[Rejection]},
    503: {"description": "Busy; Retry-After has the seconds to wait"},
}


class ModelFacts(BaseModel):
    """The model that is served."""

    dataset: str
    title: str
    classes: list[str]
    image: list[int] = Field(description="height and width in pixels, and 3 for color")
    background: int = Field(description="gray level of the background")
    kind: str
    parameters: int
    digest: str = Field(description="SHA-256 of the model file")


class Health(BaseModel):
    """State of the model file on disk."""

    status: str = Field(description="ok, or stale if the model file is missing or invalid")
    digest: str
    problem: str = Field(description="empty if ok")


def read_warm(path: Path) -> Classifier:
    """Read a model file, and all data that the first classification would load."""
    classifier = read_classifier(path)
    classifier.unusual(np.zeros((1, *classifier.model.image), np.uint8))  # the training images
    return classifier


class Served:
    """The last valid content of a model file.

    Attributes:
        classifier: The classifier in the file, or the previous one if the file is missing or
            invalid.
        problem: The reason why the current file is not served; empty if it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""
        self._lock = threading.Lock()
        self._version = self._stat()
        self.classifier = read_warm(path)

    def _stat(self) -> list[tuple[int, int, int] | None]:
        """Return inode, size and time of the files that a classifier may depend on."""
        found: list[tuple[int, int, int] | None] = []
        for path in (self.path, SCORES, *dataset_files().values()):
            try:
                stat = path.stat()
                found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
            except OSError:
                found.append(None)
        return found

    def current(self) -> Classifier:
        """Return the classifier, reloaded if its file has changed; during a reload, the old one."""
        if self._lock.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._lock.release()
        return self.classifier

    def _refresh(self) -> None:
        version = self._stat()
        if version == self._version:
            return
        try:
            classifier = read_warm(self.path)
            if self._stat() != version:  # replaced during the reload; the next request reloads it
                return
            self.classifier, self.problem = classifier, ""
            line = f"{self.path.name}: loaded {classifier.digest[:12]}"
        except FileNotFoundError:
            self.problem = f"{self.path.name}: no such file"
            line = f"{self.problem}; the previous model is served"
        except (StageError, OSError, ValueError) as error:
            self.problem = without_paths(error, self.path)
            line = f"{self.problem}; the previous model is served"
        self._version = version
        print(f"serve: {line}", file=sys.stderr, flush=True)


def without_paths(error: Exception, path: Path) -> str:
    """Format an error in one line, without folders and representations of Python objects."""
    text = " ".join(str(error).split()).replace(str(path), path.name)
    return re.sub(r" <[^>]*>", "", text)


def printable_name(name: str | None) -> str:
    """Sanitize a file name from a request: no folders or control characters, limited length."""
    last = re.split(r"[/\\]", name or "")[-1][:NAME_LENGTH]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in last)


def png_url(image: np.ndarray) -> str:
    """Encode an image, shape (height, width[, 3]), uint8, as a data URL."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def classify_file(
    classifier: Classifier, upload: UploadFile, seen: bool
) -> Classification | Rejection:
    """Classify an uploaded file."""
    name = printable_name(upload.filename)
    try:
        prepared = classifier.prepare(upload.file)
        images = prepared.image[None]
        probabilities = classifier.predict(images)[0].tolist()
        unusual = classifier.unusual(images)
    except (StageError, *UNREADABLE) as error:
        reason = without_paths(error, classifier.model.path)
        return Rejection(name=name, error=reason or type(error).__name__)
    classes = classifier.model.classes
    confidence = max(probabilities)
    return Classification(
        name=name,
        label=classes[probabilities.index(confidence)],
        confidence=confidence,
        probabilities=dict(zip(classes, probabilities, strict=True)),
        steps=list(prepared.steps),
        unusual=None if unusual is None else bool(unusual[0]),
        seen=png_url(prepared.image) if seen else None,
    )


def check_head(request: Request) -> None:
    """Reject cross-origin and oversized requests before their body is received."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise HTTPException(403, "requests from pages of other sites are refused")
    if int(request.headers.get("content-length", 0)) > REQUEST_BYTES:
        raise HTTPException(413, f"a request may have at most {REQUEST_BYTES:,} bytes")


def limited(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
) -> Callable[[], Awaitable[MutableMapping[str, Any]]]:
    """Limit the bytes of a request's body, regardless of its Content-Length."""
    total = 0

    async def count() -> MutableMapping[str, Any]:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the request was cut off")
        if total > REQUEST_BYTES:
            raise HTTPException(413, f"a request may have at most {REQUEST_BYTES:,} bytes")
        return message

    return count


@asynccontextmanager
async def receive_form(request: Request) -> AsyncIterator[FormData]:
    """Receive the files of a request; large ones are kept in temporary files."""
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            counted = Request(request.scope, limited(request.receive))
            form = await counted.form(max_files=REQUEST_FILES, max_fields=REQUEST_FILES)
    except TimeoutError:
        raise HTTPException(408, f"expected the request within {UPLOAD_SECONDS} s") from None
    try:
        yield form
    finally:
        await form.close()


def create_app(path: Path, hosts: Sequence[str]) -> FastAPI:
    """Build the service.

    Args:
        path: The model file.
        hosts: Accepted values of the Host header. Others are rejected, because a site may resolve
            its name to this machine (DNS rebinding).

    Raises:
        StageError: The file is not a valid model.
    """
    served = Served(path)
    slots, worker = asyncio.Semaphore(REQUESTS), ThreadPoolExecutor(1)
    Image.MAX_IMAGE_PIXELS = PIXELS
    app = FastAPI(title="Classifier", docs_url=None, redoc_url=None)  # these load from a CDN
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)

    def work(function: Callable[..., Any], *args: object) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(worker, function, *args)

    @app.post(
        "/classify",
        openapi_extra=UPLOAD,
        responses=ERRORS,
        response_model=list[Classification | Rejection],
        response_model_exclude_none=True,
    )
    async def classify(request: Request, response: Response, seen: bool = False) -> object:
        """Classify image files; each invalid one has an error, and the others are classified."""
        check_head(request)
        if slots.locked():
            raise BUSY
        async with slots, receive_form(request) as form:
            uploads = [upload for upload in form.getlist("files") if not isinstance(upload, str)]
            if not uploads:
                raise HTTPException(400, "expected files in the multipart field files")
            try:
                async with asyncio.timeout(QUEUE_SECONDS):
                    classifier = await work(served.current)
                    results = [
                        await work(classify_file, classifier, upload, seen) for upload in uploads
                    ]
            except TimeoutError:
                raise BUSY from None
        response.headers["X-Model-Digest"] = classifier.digest
        if all(isinstance(result, Rejection) for result in results):
            response.status_code = 422
        return results

    @app.get("/model")
    def model() -> ModelFacts:
        """The model that is served."""
        classifier = served.current()
        return ModelFacts(**vars(classifier.model), digest=classifier.digest)

    @app.get("/health")
    def health() -> Health:
        """Whether the model file on disk is the one that is served."""
        digest = served.current().digest
        status = "stale" if served.problem else "ok"
        return Health(status=status, digest=digest, problem=served.problem)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "serve.html")

    @app.get("/docs", include_in_schema=False)
    def docs() -> FileResponse:
        return FileResponse(PAGE / "docs.html")

    app.mount("/page", StaticFiles(directory=PAGE))
    return app
