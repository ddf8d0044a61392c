"""Between the worker and a run's process, so that neither outlives the other: ``python -m trainer.work.guard CMD``.

A worker that is killed cannot end what it has started; the lease then goes to another worker, and two would train the
same. The guard holds a pipe to the worker: when that closes, whatever the reason, all that the command has started is
ended, processes that left its session too. It ends as the command does, by the same status or signal. Should the guard
itself be killed, the system kills the command, and the worker what is left of its session.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import psutil

STOP_WAIT_S = 10.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main(command: list[str]) -> int:
    """Run ``command`` while standard input stays open; gives its status, negative where a signal ended it."""
    _adopt_orphans()
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    signal.signal(signal.SIGINT, lambda *_: ending.set())
    # No thread of ours has begun yet, so that code may run between fork and exec.
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_dies_with(os.getpid()))  # noqa: PLW1509
    done = threading.Event()
    threading.Thread(target=_wait_for_the_worker, args=(ending,), daemon=True).start()
    threading.Thread(target=_wait_for, args=(process, done, ending), daemon=True).start()
    ending.wait()
    if not done.is_set():
        _ask_to_end(process)
        done.wait(STOP_WAIT_S)
    _end_all()
    process.wait()
    return process.returncode


def _adopt_orphans() -> None:
    """Become the parent of what its own parent leaves behind: only so is it found. Linux alone can do this."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _dies_with(guard: int) -> Callable[[], None]:
    """To be called in the command's process: the system kills it when the guard is gone. Linux alone can do this."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None

    def bind() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != guard:  # gone before it was said
                os.kill(os.getpid(), signal.SIGKILL)

    return bind


def _wait_for_the_worker(ending: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    ending.set()


def _wait_for(process: subprocess.Popen[bytes], done: threading.Event, ending: threading.Event) -> None:
    process.wait()
    done.set()
    ending.set()


def _ask_to_end(process: subprocess.Popen[bytes]) -> None:
    for one in [*_descendants(), psutil.Process(process.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.terminate()


def _end_all() -> None:
    """Kill what is still there, again and again: a process may start another meanwhile."""
    while found := _descendants():
        for one in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(found, timeout=1.0)


def _descendants() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]


def _end_as(status: int) -> None:
    """End with the status, or by the signal."""
    if status < 0:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    _end_as(main(sys.argv[1:]))
