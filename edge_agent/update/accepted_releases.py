"""Under which keys of the director each model's release counter was accepted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_agent.durable import write_durably


class _Accepted(msgspec.Struct, frozen=True):
    release: int
    keys: str


class AcceptedReleases:
    """A small file: per model the release accepted last, and the keys that stood behind it.

    Where it is missing or damaged, every release counts as accepted under the keys of today: the strict reading.

    Args:
        path: Its folder is there by the time something is noted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._models = msgspec.json.decode(path.read_bytes(), type=dict[str, _Accepted])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            self._models = {}

    def binds(self, model: str, keys: Sequence[str]) -> bool:
        """Whether releases accepted so far hold for a director with these keys."""
        accepted = self._models.get(model)
        return accepted is None or accepted.keys == _digest(keys)

    def note(self, model: str, release: int, keys: Sequence[str]) -> None:
        """A release was accepted from a director with these keys.

        Raises:
            OSError: It cannot be written down.
        """
        accepted = _Accepted(release, _digest(keys))
        if self._models.get(model) != accepted:
            models = {**self._models, model: accepted}
            write_durably(self._path, msgspec.json.encode(models))
            self._models = models


def _digest(keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
