"""Load a service: `python -m benchmarks.baselines.serve_load SECONDS MODULE ARGUMENT ...`.

Starts the module, which prints its address, and sends it test images from 1 and from 16 clients for
SECONDS each. A client is a thread with a connection. The last line of output is JSON.
"""

import io
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from itertools import cycle, islice

import numpy as np
import psutil
from PIL import Image

CLIENTS = (1, 16)
WARM_UP = 20  # requests
HEADERS = {"Content-Type": "multipart/form-data; boundary=x"}


def form(image: np.ndarray) -> bytes:
    """Encode a form with one PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    return head + file.getvalue() + b"\r\n--x--\r\n"


def client(
    address: str, forms: Sequence[bytes], first: int, seconds: float, least: int = 1
) -> list[tuple[int, str, float]]:
    """Send requests serially; return number of the form, class and latency in seconds of each."""
    connection = HTTPConnection(address, timeout=60)
    answers = []
    end = time.perf_counter() + seconds
    for number in islice(cycle(range(len(forms))), first, None):
        start = time.perf_counter()
        connection.request("POST", "/classify", forms[number], HEADERS)
        response = connection.getresponse()
        (result,) = json.loads(response.read())
        answers.append((number, result["class"], time.perf_counter() - start))
        if response.status != 200:
            raise RuntimeError(f"status {response.status}")
        if len(answers) >= least and time.perf_counter() > end:
            return answers
    raise RuntimeError("no images")


def load(address: str, forms: Sequence[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Measure the requests per second, and quantiles of the latency in milliseconds."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(client, address, forms, 7 * i, seconds) for i in range(clients)]
        answers = [answer for future in futures for answer in future.result()]
    wall = time.perf_counter() - start
    p50, p99 = np.quantile([latency for _, _, latency in answers], [0.5, 0.99])
    return {"rate": len(answers) / wall, "p50": p50 * 1e3, "p99": p99 * 1e3}


def main() -> None:
    """Measure one service."""
    seconds, module, *arguments = sys.argv[1:]
    forms = [form(image) for image in np.load("data/raw/test_images.npy")[:200]]
    service = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        if service.stdout is None:
            raise RuntimeError("expected a pipe")
        address = service.stdout.readline().split()[0].removeprefix("http://")
        client(address, forms, 0, 0, WARM_UP)
        result: dict[str, object] = {
            f"{clients}": load(address, forms, clients, float(seconds)) for clients in CLIENTS
        }
        classes = [name for _, name, _ in client(address, forms, 0, 0, WARM_UP)]
        memory = psutil.Process(service.pid).memory_info().rss
    finally:
        service.terminate()
        service.wait()
    print(json.dumps(result | {"memory": memory, "classes": classes}))


if __name__ == "__main__":
    main()
