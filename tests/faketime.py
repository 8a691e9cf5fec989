"""Unpack Debian's libfaketime, which sets a process's clock, into a folder; needs no root."""

import platform
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.lib.sources.catalog import Source
from stages.lib.sources.packages import from_debian

NAME = "libfaketimeMT.so.1"

if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        inside = f"usr/lib/{platform.machine()}-linux-gnu/faketime/{NAME}"
        from_debian(
            Source.model_construct(debian="libfaketime", files={NAME: inside}), Path(folder)
        )
        (Path(sys.argv[1]) / NAME).write_bytes((Path(folder) / NAME).read_bytes())
