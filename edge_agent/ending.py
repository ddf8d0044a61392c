"""The end of a process whose work is done: all is flushed, and the libraries' threads are not torn down."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


def run_and_end(main: Callable[[], object]) -> NoReturn:
    """Run a program's ``main`` and end the process with its status, without the interpreter's teardown.

    Libraries that read tables leave threads running; the C++ runtime aborts a process that destroys such a thread at
    its very end ("terminate called without an active exception"), and all that it has done then looks failed. What the
    interpreter does before is done here too, in its order: threads are waited for, what was registered to run at the
    end runs, standard streams are flushed. An error that ``main`` raises ends the process as it always does.
    """
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = _status_of(ended)
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing ends its own processes
    atexit._run_exitfuncs()  # noqa: SLF001
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):  # nobody reads any more, or it is closed
        status = status or 1
    os._exit(status)


def _status_of(ended: SystemExit) -> int:
    """What the interpreter makes of it: text is said, and stands for 1."""
    if ended.code is None:
        return 0
    if isinstance(ended.code, int):
        return ended.code & 0xFF
    sys.stderr.write(f"{ended.code}\n")
    return 1
