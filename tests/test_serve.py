"""The server as a process: startup, shutdown and slow clients."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest

from stages.lib.stage import StageError
from tests.helpers import ROOT
from tests.serving import HEAD, Server, files, form, png, serving, wait_until
from tools import serve
from tools.lib import service

SECONDS = {"UPLOAD_SECONDS": 1, "IDLE_SECONDS": 1}


@pytest.fixture(scope="module")
def server(bars_file: Path) -> Iterator[Server]:
    with serving(bars_file, None, **SECONDS) as server:
        yield server


def classify(server: Server) -> str:
    response = httpx.post(f"{server.address}/classify", files=files(png()))
    return str(response.json()[0]["class"])


def test_responses_have_security_headers(server: Server) -> None:
    for address in ("/", "/model", "/nothing"):
        headers = httpx.get(server.address + address).headers
        assert all(headers[name] == value for name, value in service.HEADERS.items())
        assert "server" not in headers
    assert "unsafe" not in service.HEADERS["Content-Security-Policy"]
    assert classify(server) == "horizontal"


def test_occupied_port_is_reported_in_one_line(server: Server, bars_file: Path) -> None:
    port = server.address.rpartition(":")[2]
    command = [sys.executable, "-m", "tools.serve", "--model", str(bars_file), "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    line = f"serve: 127.0.0.1, port {port}: address already in use; see --host and --port\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("127.0.0.1", 65_536, "expected 0 to 65535"),
        ("127.0.0.1", -1, "expected 0 to 65535"),
        ("192.0.2.1", 0, "cannot assign"),
        ("no.such.host.invalid", 0, "name"),
    ],
)
def test_invalid_addresses_are_rejected(host: str, port: int, reason: str) -> None:
    with pytest.raises(StageError, match=reason):
        serve.listen(host, port)


def test_missing_model_is_reported_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.serve", "--port", "0", "--model"]
    done = subprocess.run(
        [*command, str(tmp_path / "no.onnx")], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "no.onnx: no such file" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_server_after_running_request(bars_file: Path, number: signal.Signals) -> None:
    content = form(png())
    with serving(bars_file) as server, server.connect() as connection, server.connect():
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content[:50])
        assert not server.refuses()  # so it has read the part that was sent before
        server.process.send_signal(number)
        wait_until(server.refuses)
        connection.sendall(content[50:])
        assert b'"class":"horizontal"' in receive(connection)
        assert server.output() == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_make_serve_without_an_error(bars_file: Path, number: signal.Signals) -> None:
    command = ["make", "--no-print-directory", "--old-file", ".venv/installed", "serve"]
    process = subprocess.Popen(
        [*command, f"SERVE=--port 0 --model {bars_file}"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().split()[0]
        httpx.get(f"{address}/health").raise_for_status()  # so it handles signals
        # A terminal sends SIGINT to all processes; a supervisor sends SIGTERM to the first one.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert errors == ""
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_shutdown_does_not_wait_for_slow_requests(bars_file: Path) -> None:
    with serving(bars_file) as server, server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n--x")
        assert not server.refuses()  # so it has read the part that was sent before
        start = time.monotonic()
        server.process.terminate()
        assert server.output() == (143, "serve: terminated by SIGTERM\n")
        assert 4 < time.monotonic() - start < 25  # stage.GRACE is 5, UPLOAD_SECONDS 30


def receive(connection: socket.socket) -> bytes:
    """Receive until the other side closes the connection."""
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(10_000):
            parts.append(part)
    return b"".join(parts)


def trickle(connection: socket.socket, content: bytes) -> bytes:
    """Send a byte twenty times a second until the other side answers or closes the connection."""
    for i in range(len(content)):
        if select.select([connection], [], [], 0.05)[0]:
            break
        connection.sendall(content[i : i + 1])
    return receive(connection)


def test_slow_uploads_are_rejected(server: Server) -> None:
    content = form(bytes(1000))
    with server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(content))
        assert trickle(connection, content).startswith(b"HTTP/1.1 408")


def test_slow_headers_are_cut_off(server: Server) -> None:
    with server.connect() as connection:
        assert trickle(connection, HEAD * 20) == b""


@pytest.mark.parametrize("sent", [b"", b"POST /cl", HEAD])
def test_incomplete_headers_are_cut_off(server: Server, sent: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(sent)
        assert receive(connection) == b""


def test_connection_is_kept_between_requests(server: Server) -> None:
    with server.connect() as connection:
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            response = HTTPResponse(connection)
            response.begin()
            assert response.status == 200
            assert response.read()


@pytest.mark.parametrize(
    "bad",
    [
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
        b"Content-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_invalid_requests_are_rejected(server: Server, bad: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(bad)
        assert receive(connection).startswith(b"HTTP/1.1 400")
    assert classify(server) == "horizontal"


def test_invalid_content_length_does_not_stop_server(server: Server) -> None:
    """Extra bytes are read as an invalid request, and missing ones are a slow upload."""
    content = form(png())
    for length, status in {10: b"400", 9999: b"408"}.items():
        with server.connect() as connection:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % length + content)
            assert receive(connection).startswith(b"HTTP/1.1 " + status)


def test_endless_uploads_are_rejected(bars_file: Path) -> None:
    with serving(bars_file, None, REQUEST_BYTES=100_000, **SECONDS) as server:
        with server.connect() as connection:
            connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            content = form(bytes(200_000))
            connection.sendall(b"%x\r\n" % len(content) + content)
            assert receive(connection).startswith(b"HTTP/1.1 413")
        assert classify(server) == "horizontal"


def test_connections_are_limited(bars_file: Path) -> None:
    with serving(bars_file, CONNECTIONS=3) as server:
        with server.connect(), server.connect(), server.connect():
            assert server.refuses()
        wait_until(lambda: not server.refuses())


def test_shared_server_printed_nothing(server: Server) -> None:
    """This must be the last test of the shared server."""
    server.process.terminate()
    assert server.output() == (0, "")
