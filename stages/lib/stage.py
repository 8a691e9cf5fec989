"""Startup and shutdown of stages and tools: signals, one-line errors, death of the parent DVC."""

import ctypes
import os
import re
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType

import psutil

# Zero-width joiner and non-joiner, which Kannada, Persian and other scripts use within words.
JOINERS = {0x200C: None, 0x200D: None}
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
GRACE = 5  # seconds for a library call to return and for partial files to be removed
DVC_GRACE = 60  # seconds for a DVC child process to end its stage and clean up
POLL_INTERVAL = 0.5  # seconds between checks that DVC is still running
NO_MEMORY = re.compile(
    "failed to map|cannot allocate|bad_alloc|can't start new thread|out of memory", re.I
)
# Looked up here, because a forked child must not load libraries; None on macOS.
PRCTL = getattr(ctypes.CDLL(None), "prctl", None)

received: list[int] = []  # the signal that ends this process
dvc_children: list[int] = []  # PIDs that received the same signal and have `DVC_GRACE` seconds


class StageError(Exception):
    """An error that a user can fix, printed without a traceback.

    The message is one line with the file or parameter, the problem and the fix. If several things
    failed, each argument is a line.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def is_printable(text: str) -> bool:
    """Return whether a text has no line breaks or control characters."""
    return text.translate(JOINERS).isprintable()


def expect_memory(size: int) -> None:
    """Check the address space limit, below which C libraries abort or hang without an error.

    Args:
        size: Minimum limit in GB.

    Raises:
        StageError: The limit is lower.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < size * 10**9:
        raise StageError(
            f"memory: expected at least {size} GB, found a limit of {limit / 10**9:.1f} GB; "
            "raise ulimit -v"
        )


def end_with_parent() -> None:
    """On Linux, make the kernel kill this process when its parent dies, even by SIGKILL."""
    if PRCTL:
        PRCTL(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of prctl(2)


def _terminated_by(number: int) -> str:
    if number == signal.SIGINT:
        return "interrupted"
    return f"terminated by {signal.Signals(number).name}"


def _line(error: BaseException) -> str:
    """Describe an error in one line; return "" for a bug, which needs its traceback."""
    if received or isinstance(error, KeyboardInterrupt):
        return _terminated_by(received[0] if received else signal.SIGINT)
    if isinstance(error, FileNotFoundError):
        return f"{error.filename}: no such file; run dvc repro to create missing outputs"
    if isinstance(error, BrokenPipeError):
        return "stdout: broken pipe"
    if isinstance(error, MemoryError) or (
        NO_MEMORY.search(str(error)) and not isinstance(error, StageError)
    ):
        found = " ".join(str(error).split())[:200] or "allocation failed"
        return f"out of memory ({found}); close other programs or raise the limit (ulimit -v)"
    if isinstance(error, StageError):
        return "\n".join(" ".join(str(line).split()) for line in error.args)
    if isinstance(error, OSError):
        return " ".join(str(error).split())
    return ""


def _exit(line: str, code: int) -> None:
    with suppress(OSError):
        print(f"{Path(sys.argv[0]).stem}: {line}", file=sys.stderr, flush=True)
    os._exit(code)  # the exit handlers of Python and TensorFlow may print more, or hang


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if line := _line(error):
        _exit(line, 128 + received[0] if received else 1)
    sys.__excepthook__(kind, error, trace)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # a second signal must not interrupt the cleanup
    received.append(number)
    raise KeyboardInterrupt


def _raise_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Repeat a KeyboardInterrupt raised where Python ignores exceptions, as in `__del__`."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(ignored)


def _child_of_dvc() -> psutil.Process:
    """Find the process that DVC started: this one or the shell that runs it."""
    process = psutil.Process()
    with suppress(psutil.Error):
        stage = os.environ["DVC_STAGE"]
        while (parent := process.parent()) and parent.environ().get("DVC_STAGE") == stage:
            process = parent
    return process


def _watch(signals: int) -> None:
    """End the process when its parent DVC dies, or `GRACE` seconds after a signal.

    It waits longer, up to `DVC_GRACE` seconds, for processes in `dvc_children`.
    """
    wait = POLL_INTERVAL if "DVC_STAGE" in os.environ else None
    with suppress(psutil.Error, OSError):  # the process that DVC started has ended
        if wait:
            child = _child_of_dvc()
            dvc = child.ppid()
            # In another process group it is not DVC, but the process that adopts orphans.
            if os.getpgid(dvc) != os.getpgrp():
                raise ProcessLookupError
        while not select.select([signals], [], [], wait)[0]:
            if child.ppid() != dvc:
                raise ProcessLookupError
    if not select.select([signals], [], [], 0)[0]:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    number = os.read(signals, 1)[0]
    time.sleep(GRACE)
    deadline = time.monotonic() + DVC_GRACE
    while dvc_children and time.monotonic() < deadline:
        time.sleep(0.1)
    _exit(_terminated_by(number), 128 + number)


@cache
def _guard() -> None:
    sys.excepthook, sys.unraisablehook = _end, _raise_again
    signals, woken = os.pipe()
    os.set_blocking(woken, False)
    # Wake the thread even while a TensorFlow call keeps Python from running signal handlers.
    signal.set_wakeup_fd(woken)
    for each in SIGNALS:
        if signal.getsignal(each) != signal.SIG_IGN:  # ignored under nohup
            signal.signal(each, _stop)
    threading.Thread(target=_watch, args=(signals,), daemon=True).start()
    expect_memory(1)


def run(main: Callable[[], object]) -> None:
    """Run the `main` of a stage or tool.

    An error that a user can fix ends the process with one line, no traceback and exit code 1. A
    signal raises KeyboardInterrupt in `main`, and ends the process with exit code 128 plus the
    signal number; death of the parent DVC counts as SIGTERM.

    Args:
        main: May raise `StageError`, or `OSError` for disk and permission errors.
    """
    _guard()
    name = getattr(sys.modules["__main__"].__spec__, "name", "")
    if re.fullmatch(r"stages\.\w+", name) and sys.argv[1:]:
        found = " ".join(sys.argv[1:])
        raise StageError(f"expected no arguments, found {found}; edit params.yaml instead")
    if sys.stdout:
        # Flush each line, even into a pipe, and escape characters that the encoding lacks.
        reconfigure = sys.stdout.reconfigure  # type: ignore[union-attr]
        reconfigure(line_buffering=True, errors="backslashreplace")
    main()
