"""Machine code that only starting needed: it need not stay in memory.

To load a model and to bring up an agent touches three times the code that answering requests does. The kernel keeps
what was once touched mapped, and so counts it as this process's, until memory runs short; then it has to look whether
it is still in use. Let go of at once it is plain page cache: the first to make room, and back within microseconds where
it is wanted after all. Of a small CNN's agent 22 MB of 88 went so, and its next run took 1 ms longer, once.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import re
from collections.abc import Callable
from pathlib import Path

_SMAPS = Path("/proc/self/smaps")
_STATM = Path("/proc/self/statm")
# Header and "Anonymous" line of each mapping of a file that is executable, private and not writable.
_CODE = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ \S+ +(/[^\n]*)\n(?:[A-Z][^\n]*\n)*?Anonymous: +([0-9]+) kB", re.MULTILINE
)
# Files that are gone, or never were any, have no other copy of what a program wrote into its mapping.
_NO_FILE = (b"/memfd:", b"/dev/")
_DELETED = b" (deleted)"
_GROWN_BYTES = 4 << 20


def let_go_of_code() -> None:
    """Unmap the resident pages of all code that is as its file has it; Linux only, elsewhere nothing happens.

    Code that was patched in memory (some drivers do) is left alone.
    """
    advise = _advise()
    if advise is None:
        return
    try:
        smaps = _SMAPS.read_bytes()
    except OSError:  # no /proc in this container
        return
    for begin, end, path, anonymous_kb in _CODE.findall(smaps):
        if anonymous_kb == b"0" and not path.startswith(_NO_FILE) and not path.endswith(_DELETED):
            first = int(begin, 16)
            advise(first, int(end, 16) - first, mmap.MADV_DONTNEED)


class CodeWatch:
    """Lets go of code after a start, and where much more has come to be resident, as by the load of another model."""

    def __init__(self) -> None:
        self._settled: int | None = None
        self._just_let_go = False

    def look(self) -> None:
        """To be called every few seconds."""
        resident = file_bytes()
        if self._just_let_go:
            self._settled, self._just_let_go = resident, False  # what is in use has come back
        elif self._settled is None or resident > self._settled + _GROWN_BYTES:
            let_go_of_code()
            self._just_let_go = True


def file_bytes() -> int:
    """Pages of mapped files that are resident, in bytes; 0 where the kernel does not tell."""
    try:
        return int(_STATM.read_text().split()[2]) * mmap.PAGESIZE
    except OSError:
        return 0


@functools.cache
def _advise() -> Callable[[int, int, int], int] | None:
    """``madvise(2)``, where it is Linux's: elsewhere the same advice may mean another thing."""
    if not _SMAPS.exists() or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    found: Callable[[int, int, int], int] = function
    return found
