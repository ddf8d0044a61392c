"""Files of the kernel (sysfs, procfs) under a root folder: what is not there is None, what is broken is told once."""

from __future__ import annotations

import errno
import logging
import re
from pathlib import Path

log = logging.getLogger(__name__)

# Not there, or there but switched off: a thermal zone of a part without power answers EAGAIN, a disabled channel of a
# power monitor ENODATA.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.EAGAIN, errno.ENODATA})
_MOST_BYTES = 1 << 16  # sysfs gives a page; the longest that is read here is a table of power modes
_DIGITS = re.compile(r"(\d+)")


class SystemFiles:
    """Reads small files below a root; no method raises.

    Args:
        root: ``/`` on a device; in tests a folder with a recorded tree. Paths are given relative to it.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._told: set[str] = set()

    def text(self, path: str) -> str | None:
        """A file's text, without blanks and NUL bytes around it."""
        try:
            with (self._root / path).open("rb") as file:
                found = file.read(_MOST_BYTES)
        except OSError as error:
            if error.errno not in _ABSENT:
                self._tell(path, error.strerror or str(error))
            return None
        return found.decode("utf-8", "replace").strip("\0 \t\r\n")

    def number(self, path: str) -> float | None:
        """A file's only number."""
        found = self.text(path)
        if not found:
            return None
        try:
            return float(int(found, 16 if found.startswith("0x") else 10))
        except ValueError:
            self._tell(path, f"no number: {found[:40]!r}")
            return None

    def find(self, pattern: str) -> list[str]:
        """Paths that fit a pattern such as ``sys/class/hwmon/hwmon*``, 2 before 10."""
        try:
            found = [str(path.relative_to(self._root)) for path in self._root.glob(pattern)]
        except OSError as error:
            self._tell(pattern, error.strerror or str(error))
            return []
        return sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in _DIGITS.split(path)])

    def exists(self, path: str) -> bool:
        """Whether it is there, whoever may read it."""
        try:
            return (self._root / path).exists()
        except OSError:
            return False

    def _tell(self, path: str, why: str) -> None:
        if path not in self._told:
            self._told.add(path)
            log.warning("%s: %s; reported as unknown from now on", self._root / path, why)
