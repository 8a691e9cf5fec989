"""Run a command, and write its wall time and peak memory to a file.

This is a separate process, because on Linux the peak memory of a command includes that of the
process that started it.
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
    with open(note, "w") as file:  # noqa: PTH123  # importing pathlib would add to the peak
        json.dump(
            {"wall": wall, "peak": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit},
            file,
        )
    sys.exit(code)
