"""One file of a Kaggle dataset, in a process of its own.

Usage: `python -m stages.lib.sources.kaggle OWNER/NAME FILE TARGET`.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import requests

from stages.lib.sources.download import HttpsSession, reason


def _in_one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    print(f"error: {reason(error)}", file=sys.stderr)


def main() -> None:
    """Downloads the file, from https addresses only; what goes wrong ends as one line and exit code 1."""
    handle, name, target = sys.argv[1:]
    sys.excepthook = _in_one_line
    # Another environment than production is plain http, and prints the token that it sends.
    os.environ.pop("KAGGLE_API_ENVIRONMENT", None)
    requests.Session = HttpsSession  # type: ignore[misc]
    import kagglehub  # after the session that it is to use

    with TemporaryDirectory(dir=Path(target).parent) as folder:
        Path(kagglehub.dataset_download(handle, path=name, output_dir=folder)).replace(target)


if __name__ == "__main__":
    main()
