"""The service with a real model, and under load for minutes.

`SCREENSHOT=docs/images/serve.png pytest -m slow tests/slow/test_serve.py -k drawn` draws the
figure of the docs; `SOAK=20 ... -k soak` soaks for 20 seconds.
"""

import io
import os
import random
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import cos, pi, sin
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.helpers import ROOT, Clone, bars_model, open_context
from tests.serving import HEAD, Server, form, png, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

SOAK_SECONDS = float(os.environ.get("SOAK", "60"))
CLIENTS = 8
Points = list[tuple[float, float]]


def arc(x: float, y: float, width: float, height: float, start: float, end: float) -> Points:
    """Points of an ellipse; angles in turns, clockwise from the right."""
    turns = np.linspace(start, end, 24)
    return [(x + width * cos(2 * pi * t), y + height * sin(2 * pi * t)) for t in turns]


DIGITS: list[list[Points]] = [
    [arc(0.5, 0.5, 0.2, 0.3, -0.25, 0.8)],
    [[(0.53, 0.2), (0.47, 0.8)]],
    [[*arc(0.5, 0.36, 0.17, 0.16, -0.5, 0.08), (0.33, 0.78), (0.7, 0.78)]],
    [[*arc(0.48, 0.34, 0.16, 0.14, -0.42, 0.25), *arc(0.48, 0.64, 0.18, 0.16, -0.25, 0.42)]],
    [[(0.38, 0.22), (0.32, 0.55), (0.68, 0.55)], [(0.62, 0.25), (0.6, 0.8)]],
    [[(0.68, 0.22), (0.38, 0.22), (0.36, 0.48), *arc(0.48, 0.62, 0.19, 0.17, -0.3, 0.4)]],
    [[(0.6, 0.2), (0.4, 0.45), *arc(0.48, 0.65, 0.15, 0.15, 0.5, -0.55)]],
    [[(0.3, 0.24), (0.7, 0.24), (0.46, 0.8)]],
    [arc(0.5, 0.35, 0.13, 0.14, 0.25, 1.25), arc(0.5, 0.65, 0.16, 0.15, -0.25, 0.75)],
    [[*arc(0.48, 0.36, 0.15, 0.15, 0, -1), (0.6, 0.8)]],
]


def test_drawn_digits_are_recognized(browser: "Browser", trained: Clone) -> None:
    """Of eleven digits drawn with the mouse, two may be misclassified."""
    with serving(trained.path / "data/model.onnx", trained.path) as server:
        page = open_context(browser, viewport={"width": 960, "height": 620}).new_page()
        page.goto(server.address)
        page.locator("#bars li").first.wait_for()
        box = page.locator("#canvas").bounding_box()
        assert box is not None
        found = []
        for digit in [*range(10), 3]:
            page.keyboard.press("Escape")
            for stroke in DIGITS[digit]:
                places = [
                    (box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke
                ]
                page.mouse.move(*places[0])
                page.mouse.down()
                for place in places[1:]:
                    page.mouse.move(*place, steps=2)
                page.mouse.up()
            page.locator("#answer[aria-busy=false]").wait_for()
            found.append(page.locator("#label").inner_text())
        if "SCREENSHOT" in os.environ:
            page.screenshot(path=ROOT / os.environ["SCREENSHOT"], full_page=True)
        page.context.close()
    assert sum(label == str(digit) for digit, label in enumerate(found)) >= 9, found


def bomb() -> bytes:
    """A PNG file of 100 million pixels in 100 kB."""
    file = io.BytesIO()
    Image.new("L", (10_000, 10_000)).save(file, "PNG")
    return file.getvalue()


def exchange(server: Server, *parts: bytes, pause: float = 0) -> int:
    """Send a request in parts, and return the status; 0 if there is none."""
    with server.connect() as connection:
        try:
            for part in parts:
                connection.sendall(part)
                if select.select([connection], [], [], pause)[0]:
                    break
            answer = connection.recv(65_536)
        except (BrokenPipeError, ConnectionResetError):
            return 0
    return int(answer.split()[1]) if answer else 0


def whole(content: bytes) -> bytes:
    return HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(content) + content


def cut_off(server: Server) -> int:
    """Send a part of a request, and return the size of the response."""
    with server.connect() as connection:
        connection.sendall(whole(form(bytes(1000)))[:-500])
        connection.shutdown(socket.SHUT_WR)
        return len(connection.recv(65_536))


def reset(server: Server) -> int:
    """Reset the connection within a request, and return the status of the next request."""
    with server.connect() as connection:
        connection.sendall(whole(form(bytes(1000)))[:-500])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return exchange(server, whole(form(png())))


def test_soak_with_invalid_requests(tmp_path: Path) -> None:
    """A tenth of the requests is invalid, cut off or slow; memory does not grow."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 14, 14), np.uint8)
    images = [whole(form(png(image))) for image in noise]
    large, no_image = whole(form(bomb())), whole(form(b"no image" * 100))
    announced = HEAD + b"Connection: close\r\nContent-Length: 40000000\r\n\r\n"
    slow = [*[bytes([byte]) for byte in whole(form(bytes(60)))[:-20]]]
    bad: dict[str, tuple[Callable[[Server], int], int]] = {
        "cut off": (cut_off, 0),
        "reset": (reset, 200),
        "no image": (lambda server: exchange(server, no_image), 422),
        "bomb": (lambda server: exchange(server, large), 422),
        "too large": (lambda server: exchange(server, announced), 413),
        "slow": (
            lambda server: exchange(server, b"".join(slow[:-40]), *slow[-40:], pause=0.05),
            408,
        ),
    }
    statuses: Counter[tuple[str, int]] = Counter()

    def client(server: Server, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311
        end = time.monotonic() + SOAK_SECONDS
        while time.monotonic() < end:
            if chance.random() < 0.9:
                statuses["image", exchange(server, chance.choice(images))] += 1
            else:
                kind = chance.choice([*bad])
                statuses[kind, bad[kind][0](server)] += 1

    (tmp_path / "model.onnx").write_bytes(bars_model())
    with serving(tmp_path / "model.onnx", UPLOAD_SECONDS=5) as server:
        memory = psutil.Process(server.process.pid).memory_info
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(client, server, seed) for seed in range(CLIENTS)]
            time.sleep(SOAK_SECONDS / 4)
            early = memory().rss
            for future in clients:
                future.result()
        assert httpx.get(f"{server.address}/health").json()["status"] == "ok"
        late = memory().rss
        server.process.terminate()
        assert server.output() == (0, "")
    print(dict(statuses), f"{early / 1e6:.0f} MB, then {late / 1e6:.0f} MB")
    expected = {("image", 200)} | {(kind, status) for kind, (_, status) in bad.items()}
    assert set(statuses) == expected
    assert late - early < 20e6
