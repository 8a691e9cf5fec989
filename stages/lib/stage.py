"""How a stage starts and how it ends: in order and in one line, whatever ends it."""

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

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
GRACE = 5  # seconds for a call into a library to return, and for what was begun to be removed
GLANCE = 0.5  # seconds between two looks at whether DVC is still there
NO_MEMORY = re.compile(
    "failed to map|cannot allocate|bad_alloc|can't start new thread|out of memory", re.I
)

received: list[int] = []  # the signal that ends this process


class StageError(Exception):
    """An error that a user can fix, printed without a traceback.

    Its message is one line: what was read, expected, found, and what to do. Where several things
    failed, each argument is a line.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def expect_memory(size: int) -> None:
    """Refuses a limit of the address space in which libraries in C abort or hang, instead of telling Python.

    Args:
        size: The least that is enough, in GB.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < size * 10**9:
        raise StageError(
            f"memory: expected at least {size} GB, found a limit of {limit / 10**9:.1f}; raise ulimit -v"
        )


def _said(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"


def _line(error: BaseException) -> str:
    """What ended the process, where a person can mend it or meant it; nothing where only a programmer can."""
    if received or isinstance(error, KeyboardInterrupt):
        return _said(received[0] if received else signal.SIGINT)
    if isinstance(error, FileNotFoundError):
        return f"{error.filename}: expected the file, found none; dvc repro makes what is missing"
    if isinstance(error, BrokenPipeError):
        return "stdout: expected a reader to the end, found it closed"
    if isinstance(error, MemoryError) or (
        NO_MEMORY.search(str(error)) and not isinstance(error, StageError)
    ):
        found = " ".join(str(error).split())[:200] or "no more"
        return f"memory: expected enough, found: {found}; close other programs, or raise the limit (ulimit -v)"
    if isinstance(error, StageError):
        return "\n".join(" ".join(str(line).split()) for line in error.args)
    if isinstance(error, OSError):
        return " ".join(str(error).split())
    return ""


def _exit(line: str, code: int) -> None:
    with suppress(OSError):
        print(f"{Path(sys.argv[0]).stem}: {line}", file=sys.stderr, flush=True)
    os._exit(code)  # what Python and TensorFlow do on their way out can say more, or hang


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if line := _line(error):
        _exit(line, 128 + received[0] if received else 1)
    sys.__excepthook__(kind, error, trace)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # a second one shall not break off the tidying
    received.append(number)
    raise KeyboardInterrupt


def _below_dvc() -> psutil.Process:
    """The process that DVC started: this one, or a shell around it that stays."""
    process = psutil.Process()
    with suppress(psutil.Error):
        while (parent := process.parent()) and parent.environ().get("DVC_STAGE") == os.environ[
            "DVC_STAGE"
        ]:
            process = parent
    return process


def _watch(signals: int) -> None:
    """Ends the process when DVC, which tells nobody, is gone; and when a signal came and nothing followed."""
    wait = GLANCE if "DVC_STAGE" in os.environ else None
    with suppress(psutil.Error, OSError):  # the process that DVC started is gone
        if wait:
            child = _below_dvc()
            dvc = child.ppid()
            if os.getpgid(dvc) != os.getpgrp():  # DVC went first, and this is whoever takes orphans
                raise ProcessLookupError
        while not select.select([signals], [], [], wait)[0]:
            if child.ppid() != dvc:
                raise ProcessLookupError
    if not select.select([signals], [], [], 0)[0]:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    number = os.read(signals, 1)[0]
    time.sleep(GRACE)
    _exit(_said(number), 128 + number)


@cache
def _guard() -> None:
    sys.excepthook = _end
    signals, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(
        woken
    )  # the thread is told even while TensorFlow keeps Python from its handlers
    for each in SIGNALS:
        if signal.getsignal(each) != signal.SIG_IGN:  # as nohup asks for
            signal.signal(each, _stop)
    threading.Thread(target=_watch, args=(signals,), daemon=True).start()
    expect_memory(1)


def run(main: Callable[[], object]) -> None:
    """Runs a stage's `main`; what a user can mend ends the process with one line, no traceback and exit code 1.

    A signal ends it with 128 and its number, also when DVC is gone, which is taken as SIGTERM.

    Args:
        main: The stage, which raises `StageError`, or `OSError` where the disk or a right is at
            fault.
    """
    _guard()
    name = getattr(sys.modules["__main__"].__spec__, "name", "")
    if re.fullmatch(r"stages\.\w+", name) and sys.argv[1:]:
        raise StageError(
            f"expected no arguments, found {' '.join(sys.argv[1:])}; params.yaml configures a stage"
        )
    if sys.stdout:
        # Print lines at once even into a pipe, and never fail on what its encoding lacks.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    main()
