"""How a stage starts and how it ends when something is wrong."""

import sys
from collections.abc import Callable
from pathlib import Path


class StageError(Exception):
    """A fault that a user can mend; its message is one line: looked at, expected, found, what to do."""


def run(main: Callable[[], object]) -> None:
    """Runs a stage's `main`, and ends the process with one line and no traceback where a user can mend the cause.

    Args:
        main: The stage, which raises `StageError`, or `OSError` where the disk or a right is at fault.
    """
    name = Path(sys.argv[0]).stem
    # Lines are seen when they are printed, also where DVC's output goes into a file or a pipe.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        main()
    except FileNotFoundError as error:
        sys.exit(f"{name}: {error.filename}: expected the file, found none; dvc repro makes what is missing")
    except (StageError, OSError) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)
