"""Download files over https, with verified certificates, limits on time and size, and retries."""

import re
import time
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3 import Retry
from urllib3.exceptions import HTTPError

from stages.lib.stage import StageError

TIMEOUT = (10, 30)  # seconds to connect; seconds between bytes
BUDGET = 900  # seconds per file, including retries
LIMIT = 200_000_000  # bytes per file
TRIES = 2
CHUNK = 1 << 16


class HttpsSession(requests.Session):
    """A session without an adapter for plain http, so that no URL or redirect can leave https."""

    def __init__(self) -> None:
        super().__init__()
        del self.adapters["http://"]
        self.max_redirects = 5
        self.headers["Accept-Encoding"] = "identity"  # no compression
        retries = Retry(
            total=3,
            connect=1,
            other=0,
            status_forcelist=(429, 500, 502, 503, 504),
            backoff_factor=0.5,
            retry_after_max=5,
            raise_on_status=False,
        )
        self.mount("https://", HTTPAdapter(max_retries=retries))


def reason(error: BaseException) -> str:
    """Describe an error in one line, without the chain of library exceptions around it."""
    where = (
        "the proxy of HTTPS_PROXY: " if isinstance(error, requests.exceptions.ProxyError) else ""
    )
    while cause := next(
        (
            one
            for one in (getattr(error, "reason", None), *error.args)
            if isinstance(one, Exception)
        ),
        None,
    ):
        error = cause
    words = re.sub(r"^.*\(host=[^)]*\): ", "", " ".join(str(error).split())) or type(error).__name__
    return where + re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", words)  # a signed address is a secret


def _stream(session: requests.Session, url: str, path: Path, deadline: float) -> None:
    with session.get(url, stream=True, timeout=TIMEOUT) as response, path.open("wb") as file:
        response.raise_for_status()
        declared = response.headers.get("Content-Length", "")
        size = int(declared) if declared.isdecimal() else 0
        with tqdm(
            total=size or None, desc=f"  {path.name}", unit="B", unit_scale=True, disable=None
        ) as bar:
            # read1 returns the bytes that have arrived, so that the deadline also holds for slow
            # responses.
            while chunk := response.raw.read1(CHUNK):
                bar.update(file.write(chunk))
                if file.tell() > LIMIT:
                    raise StageError(f"{url}: expected at most {LIMIT:,} bytes, found more")
                if time.monotonic() > deadline:
                    raise StageError(
                        f"{url}: timed out after {BUDGET} seconds and {file.tell():,} bytes"
                    )
        if size and file.tell() != size:
            raise requests.exceptions.ChunkedEncodingError(
                f"connection closed after {file.tell():,} of {size:,} bytes"
            )


def download(url: str, path: Path) -> None:
    """Download one file over https, with a progress bar in terminals.

    Raises:
        StageError: The download failed. The message has the URL and the reason.
    """
    deadline = time.monotonic() + BUDGET
    with HttpsSession() as session:
        for left in reversed(range(TRIES)):
            try:
                _stream(session, url, path, deadline)
                return
            except (
                requests.HTTPError,
                requests.exceptions.InvalidSchema,
                requests.TooManyRedirects,
            ) as error:
                raise StageError(f"{url}: {reason(error)}") from error
            except (requests.RequestException, HTTPError) as error:
                if not left or isinstance(error, requests.exceptions.SSLError):
                    raise StageError(f"{url}: {reason(error)}") from error
