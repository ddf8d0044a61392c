"""Which root a TUF client begins with: the newest that was ever reached from the one that came with enrolment.

The stock client begins at the enrolled root each time and goes at most so many rotations from there: a device that
lives long enough would stop at one root for good, and keeps every root it ever saw.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import msgspec

from edge_agent.durable import write_durably

_ANCHOR = "anchor"
_KEPT = 2  # the newest, and the one before it


class _Anchor(msgspec.Struct, frozen=True, kw_only=True):
    """The newest root, and from which enrolled root it was reached; both by their SHA-256."""

    enrolled: str
    version: int
    root: str


class RootHistory:
    """The folder of roots that python-tuf keeps, bounded.

    What is damaged there is as good as missing: the chain is then fetched again, from the enrolled root on.

    Args:
        folder: ``root_history`` within the client's folder.
        enrolled: The root that came with enrolment.
    """

    def __init__(self, folder: Path, enrolled: bytes) -> None:
        self._folder, self._enrolled = folder, enrolled
        self._anchor = self._read()

    @property
    def lowest_version(self) -> int:
        """A version that was reached before: whoever shows less has something to hide."""
        return self._anchor.version if self._anchor is not None else 0

    def newest(self) -> bytes:
        """The root to begin with."""
        if self._anchor is not None:
            with contextlib.suppress(OSError):
                data = self._place(self._anchor.version).read_bytes()
                if _sha256(data) == self._anchor.root:
                    return data
        return self._enrolled

    def reached(self, version: int) -> None:
        """Begin with this root, whose file is there, from now on, and forget what is far behind it.

        Raises:
            OSError: The folder cannot be written.
        """
        root = _sha256(self._place(version).read_bytes())
        anchor = _Anchor(enrolled=_sha256(self._enrolled), version=version, root=root)
        if anchor != self._anchor:
            write_durably(self._folder / _ANCHOR, msgspec.json.encode(anchor))
            self._anchor = anchor
        for path in self._folder.glob("*.root.json"):
            number = path.name.partition(".")[0]
            # Those of another enrolment have other numbers, and go as well.
            if not number.isdecimal() or not version - _KEPT < int(number) <= version:
                path.unlink()

    def _read(self) -> _Anchor | None:
        try:
            anchor = msgspec.json.decode((self._folder / _ANCHOR).read_bytes(), type=_Anchor)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return anchor if anchor.enrolled == _sha256(self._enrolled) else None

    def _place(self, version: int) -> Path:
        return self._folder / f"{version}.root.json"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
