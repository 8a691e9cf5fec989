"""Run a command and note how long it took and how much memory it held at most.

A process of its own, because Linux counts the memory of whoever starts a command, up to its own
peak, as the command's.
"""

import json
import os
import resource
import subprocess
import sys
import time

if __name__ == "__main__":
    note, *command = sys.argv[1:]
    start = time.perf_counter()
    code = subprocess.call(command)
    wall = time.perf_counter() - start
    unit = 1024 if os.uname().sysname == "Linux" else 1
    with open(note, "w") as file:  # noqa: PTH123  # pathlib would be a tenth of the memory counted
        json.dump(
            {"wall": wall, "peak": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit},
            file,
        )
    sys.exit(code)
