"""Helpers for tests of the service: images to upload, and the server as a process."""

import io
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image

from tests.helpers import ROOT

BAR = np.zeros((14, 14), np.uint8)  # bars_model classifies it as horizontal
BAR[6:8, 2:12] = 255

HEAD = (
    b"POST /classify HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: multipart/form-data; boundary=x\r\n"
)

# The server with other limits, so that no test has to wait.
START = """
import json, runpy, sys
from stages.lib.stage import run
from tools import serve
from tools.lib import service
for name, value in json.loads(sys.argv.pop(1)).items():
    setattr(serve if hasattr(serve, name) else service, name, value)
sys.argv[0] = "serve"
run(serve.main)
"""


def png(image: np.ndarray = BAR) -> bytes:
    """Gray levels or RGB, uint8, as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """A form of `/classify` as httpx takes it."""
    return [("files", (f"{i}.png", content)) for i, content in enumerate(contents)]


def form(content: bytes) -> bytes:
    """The body after `HEAD`, with one file."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    return head + content + b"\r\n--x--\r\n"


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until a condition holds, for a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the condition did not hold within a minute"
        time.sleep(0.05)


@dataclass(frozen=True)
class Server:
    """A running server and its address."""

    process: subprocess.Popen[str]
    address: str

    def connect(self) -> socket.socket:
        url = urlsplit(self.address)
        connection = socket.create_connection((url.hostname, url.port or 0), timeout=60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def refuses(self) -> bool:
        """Whether a new connection is refused or closed without a response."""
        try:
            httpx.get(f"{self.address}/health", timeout=60)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            return True
        return False

    def output(self) -> tuple[int, str]:
        """Wait for its end, and return the exit code and stderr."""
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@contextmanager
def serving(model: Path, folder: Path | None = None, **limits: float) -> Iterator[Server]:
    """Start the server on a free port, with some of its limits changed.

    Args:
        model: The model file.
        folder: The project that the model is from; by default there is only the model.
        limits: Constants of `tools.serve` or `tools.lib.service`.
    """
    folder = folder or model.parent
    command = [sys.executable, "-c", START, json.dumps(limits)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--model", str(model.relative_to(folder))],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 60)[0], "no start line within a minute"
        line = process.stdout.readline()
        assert line.startswith("http://"), line + process.communicate(timeout=60)[1]
        yield Server(process, line.split()[0])
    finally:
        process.kill()
        process.communicate()
