"""A local https proxy that serves as Google's storage and Kaggle, under their host names."""

import base64
import hashlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import trustme

KAGGLE = "https://api.kaggle.com/v1/datasets.DatasetApiService"
STORAGE = "https://storage.googleapis.com"
HOSTS = ("api.kaggle.com", "storage.googleapis.com")


@dataclass(frozen=True)
class Answer:
    """The response to one request.

    The header declares `length`, even if the body has another; if negative, there is no such
    header, and the connection is closed after the body. With a `pause`, `part` bytes are sent at a
    time, that many seconds apart. A `reset` follows the body.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    pause: float = 0  # seconds between the parts of the body
    part: int = 1  # bytes
    reset: bool = False


@dataclass(frozen=True)
class Request:
    """A request: its URL without the query, and its Authorization header."""

    address: str
    authorization: str


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    server: "Web"
    origin = ""  # of what follows a CONNECT; a request for plain http brings its own

    def do_CONNECT(self) -> None:  # the library's name
        self.origin = f"https://{self.path.removesuffix(':443')}"
        self.send_response(200)
        self.end_headers()
        self.rfile.close()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")
        self.close_connection = False

    def do_GET(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = self.origin + self.path.partition("?")[0]
        if sent and (name := json.loads(sent).get("fileName")):
            address += f"#{name}"
        self.server.requests.append(Request(address, self.headers.get("Authorization", "")))
        answers = self.server.answers.get(address, [Answer(b"not found", 404)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(answer.status)
        if "Transfer-Encoding" not in answer.headers and (answer.length or 0) >= 0:
            self.send_header(
                "Content-Length", str(len(answer.body) if answer.length is None else answer.length)
            )
        for key, value in answer.headers.items():
            self.send_header(key, value)
        self.end_headers()
        step = answer.part if answer.pause else max(len(answer.body), 1)
        for start in range(0, len(answer.body), step):
            self.wfile.write(answer.body[start : start + step])
            self.wfile.flush()
            threading.Event().wait(answer.pause)  # not time.sleep, which some tests replace
        self.close_connection |= answer.length is not None
        if answer.reset:
            threading.Event().wait(0.1)  # else the body is lost, too
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.wfile.close()
            self.connection.close()

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.connection.close()


class Web(ThreadingHTTPServer):
    """Every https address that a client asks for through this proxy, answered from a table."""

    daemon_threads = False  # close waits for them

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        ca = trustme.CA()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(*HOSTS).configure_cert(self.tls)
        self.authority = folder / "authority.pem"
        ca.cert_pem.write_to_path(str(self.authority))
        self.proxy = f"http://127.0.0.1:{self.server_port}"
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[Request] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: in some tests the client hangs up."""

    def serve(self, address: str, *answers: Answer) -> None:
        """Answers requests for an address in turn; the last answer stays."""
        self.answers[address] = list(answers)

    def serve_kaggle(self, name: str, *answers: Answer, stored_as: str = "") -> None:
        """Answers for a file of a Kaggle dataset: a redirect to a signed URL, then the file."""
        stored = f"{STORAGE}/kaggle-data-sets/1/2/{stored_as or name}"
        version = json.dumps({"id": 1, "currentVersionNumber": 3}).encode()
        self.serve(
            f"{KAGGLE}/GetDataset", Answer(version, headers={"Content-Type": "application/json"})
        )
        self.serve(
            f"{KAGGLE}/DownloadDataset#{name}",
            Answer(status=302, headers={"Location": f"{stored}?X-Goog-Signature=0123456789abcdef"}),
        )
        self.serve(stored, *answers)


def stored(body: bytes) -> Answer:
    """A file as Google's storage sends it, with its checksum."""
    md5 = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    return Answer(
        body, headers={"x-goog-hash": f"md5={md5}", "Content-Type": "application/octet-stream"}
    )


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """Runs the proxy on a free port; its certificate authority is a file in `folder`."""
    with Web(folder) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield web
        finally:
            web.shutdown()
            thread.join()
