"""Files over https: certificates are checked, time and size are bounded, and what breaks off is tried again."""

import re
import time
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3 import Retry
from urllib3.exceptions import HTTPError

from stages.lib.stage import StageError

TIMEOUT = (10, 30)  # seconds to connect; seconds without a byte
BUDGET = 900  # seconds for one file, all tries together
LIMIT = 200_000_000  # bytes of one file
TRIES = 2
CHUNK = 1 << 16


class HttpsSession(requests.Session):
    """A session with no adapter for plain http, so that neither an address nor a redirect can leave https."""

    def __init__(self) -> None:
        super().__init__()
        del self.adapters["http://"]
        self.max_redirects = 5
        self.headers["Accept-Encoding"] = "identity"  # the bytes as they are stored
        busy = Retry(
            total=3,
            connect=1,
            other=0,
            status_forcelist=(429, 500, 502, 503, 504),
            backoff_factor=0.5,
            retry_after_max=5,
            raise_on_status=False,
        )
        self.mount("https://", HTTPAdapter(max_retries=busy))


def reason(error: BaseException) -> str:
    """What went wrong in one line, without the chain of library objects around it."""
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
            # read1 returns what has arrived, so that a trickle of bytes meets the deadline too.
            while chunk := response.raw.read1(CHUNK):
                bar.update(file.write(chunk))
                if file.tell() > LIMIT:
                    raise StageError(f"{url}: expected at most {LIMIT:,} bytes, found more")
                if time.monotonic() > deadline:
                    raise StageError(
                        f"{url}: expected the file within {BUDGET} seconds, found {file.tell():,} bytes of it"
                    )
        if size and file.tell() != size:
            raise requests.exceptions.ChunkedEncodingError(
                f"broke off after {file.tell():,} of {size:,} bytes"
            )


def download(url: str, path: Path) -> None:
    """Downloads one file, with a bar where someone watches.

    Args:
        url: An https address.
        path: Where the bytes go, as they are sent.

    Raises:
        StageError: The address, the reason, in one line.
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
