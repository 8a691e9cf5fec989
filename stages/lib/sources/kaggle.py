"""Download one file of a Kaggle dataset, in a separate process.

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
    """Download the file over https; on errors, print one line and exit with code 1."""
    handle, name, target = sys.argv[1:]
    sys.excepthook = _in_one_line
    # Environments other than production use plain http and print the token that they send.
    os.environ.pop("KAGGLE_API_ENVIRONMENT", None)
    requests.Session = HttpsSession  # type: ignore[misc]
    import kagglehub  # imported after requests.Session, which it uses, is replaced

    with TemporaryDirectory(dir=Path(target).parent) as folder:
        Path(kagglehub.dataset_download(handle, path=name, output_dir=folder)).replace(target)


if __name__ == "__main__":
    main()
