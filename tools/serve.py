"""Serve the model: a page for drawing, and an HTTP API that classifies image files."""

import argparse
import asyncio
import ipaddress
import logging
import socket
from contextlib import suppress
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from stages.lib.stage import StageError, run
from tools.lib import service
from tools.lib.classifier import MODEL

IDLE_SECONDS = 10  # timeout for receiving the head of a request and for sending its response
CONNECTIONS = 256


class Protocol(H11Protocol):
    """HTTP with limits that uvicorn lacks, on the number of connections and on idle time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout, or refuse the connection."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            IDLE_SECONDS, self.timeout_keep_alive_handler
        )
        if len(self.connections) > CONNECTIONS:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Keep the timeout running until the head of a request is complete."""
        self.conn.receive_data(data)
        self.handle_events()

    def timeout_keep_alive_handler(self) -> None:
        """Abort the connection, even if the client has not received its response."""
        self.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address.

    Raises:
        StageError: The address is in use, or does not belong to this machine.
    """
    if not 0 <= port < 2**16:
        raise StageError(f"--port: expected 0 to 65535, found {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0].lower()
        raise StageError(f"{host}, port {port}: {reason}; see --host and --port") from error
    # Inherited by connections; without it, responses wait 40 ms for the ACK of their head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.serve", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port, 0 for any free one (8000)")
    parser.add_argument("--model", type=Path, default=MODEL, help=f"model file ({MODEL})")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)  # no warnings about invalid requests
    listener = listen(args.host, args.port)
    address, port = listener.getsockname()[:2]
    name = f"[{address}]" if ":" in address else address
    loopback = ipaddress.ip_address(address).is_loopback
    app = service.create_app(args.model, ["localhost", name] if loopback else ["*"])
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        timeout_keep_alive=IDLE_SECONDS,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=[*service.HEADERS.items()],
    )
    with suppress(KeyboardInterrupt):  # a signal is the normal end of a service
        print(f"http://{name}:{port} (Ctrl+C to stop)")
        uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    run(main)
