"""One file of a package as a delta of one that is here. Whatever goes wrong, the whole file can still be fetched."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.contract.errors import DeltaUnusable, NetworkError, ServerRefused
from edge_agent.contract.repository import delta_path
from edge_agent.update.server_files import ServerFiles
from edge_agent.update.sources import Sources

_log = logging.getLogger(__name__)
_BEING_MADE, _ITS_OWN_FAULT = 503, 500
_ASK_AGAIN_S = 2.0
# A server makes about 10 MB a second; a device that waits longer than the whole file would take has gained nothing.
_PATIENCE_S, _MADE_BYTES_PER_S = 20.0, 5_000_000


class _NoDelta(Exception):
    """Here there is none; somebody else may have one.

    Args:
        later: There may be one here later: the source is away, or still at it.
    """

    def __init__(self, why: object, *, later: bool) -> None:
        super().__init__(str(why))
        self.later = later


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaDownload:
    """A file to make of another one.

    Args:
        base: A file that is here, with SHA-256 ``base_sha256``, which the caller has checked.
        parts: Folder where bytes gather: the delta, what it makes, and marks of those not to be tried again.
        most_bytes: Longest delta that there is room for and that is worth it.
        between_chunks: Called again and again meanwhile.
    """

    sources: Sources
    base: Path
    base_sha256: str
    sha256: str
    size_bytes: int
    parts: Path
    most_bytes: int
    between_chunks: Callable[[], None]
    sleep: Callable[[float], None] = time.sleep

    def to(self, place: Path) -> bool:
        """Make the file at ``place``, which appears verified and synced, or not at all.

        Returns:
            Whether it is there; else fetch it whole.
        Raises:
            NetworkError: The delta broke off half-way; what came is kept, and continued at the next attempt.
        """
        if self._mark.exists() or self.most_bytes <= 0:
            return False
        self.parts.mkdir(parents=True, exist_ok=True)
        try:
            if not any(self._from(source) for source in self.sources.each()):
                self._give_up("nobody has one that can be used")
                return False
        except _NoDelta as error:
            _log.info("no delta for %s now: %s", self.sha256[:12], error)
            return False
        except (MemoryError, OSError) as error:
            # Without the delta there may be room enough, on the disk and in memory.
            self._give_up(repr(error))
            return False
        place.parent.mkdir(parents=True, exist_ok=True)
        self._made.replace(place)
        self._delta.unlink(missing_ok=True)
        return True

    @property
    def _name(self) -> str:
        return f"{self.base_sha256[:32]}-{self.sha256[:32]}"

    @property
    def _delta(self) -> Path:
        return self.parts / f"{self._name}.delta"

    @property
    def _made(self) -> Path:
        return self.parts / f"{self._name}.made"

    @property
    def _mark(self) -> Path:
        return self.parts / f"{self._name}.none"

    def _give_up(self, why: str) -> None:
        """Leave nothing but the mark that this delta is not to be tried again."""
        _log.info("delta for %s: %s; the whole file is fetched", self.sha256[:12], why)
        with contextlib.suppress(OSError):
            self._made.unlink(missing_ok=True)
            self._delta.unlink(missing_ok=True)
            self._mark.touch()

    def _from(self, source: ServerFiles) -> bool:
        """Whether the file could be made of what one source has.

        Raises:
            _NoDelta: The server may have one later.
            NetworkError: The server's broke off half-way.
        """
        resumed = self._delta.exists()
        try:
            self._fetch(source)
            try:
                self._apply()
            except DeltaUnusable:
                # Holes of a power cut, or another source's bytes: only what came in one go is held against the source.
                self._delta.unlink()
                if not resumed:
                    raise
                self._fetch(source)
                self._apply()
        except _NoDelta as error:
            if error.later and source is self.sources.server:
                raise
            return False
        except DeltaUnusable as error:
            _log.warning("%s: %s", source.url(delta_path(self.base_sha256, self.sha256)), error)
            self._delta.unlink(missing_ok=True)
            if source is not self.sources.server:
                self.sources.rest(source, error)
            return False
        return True

    def _fetch(self, source: ServerFiles) -> None:
        """Bring the delta here, from where an earlier attempt broke off.

        Raises:
            _NoDelta: The source has none, or is away.
            NetworkError: The server's broke off half-way.
            DeltaUnusable: It is longer than it may be.
        """
        until = time.monotonic() + _PATIENCE_S + self.size_bytes / _MADE_BYTES_PER_S
        begun = self._size()
        while not self._is_fetched(source, begun):
            if time.monotonic() > until:
                raise _NoDelta("it takes too long to be made", later=True)
            self._wait()

    def _is_fetched(self, source: ServerFiles, begun: int) -> bool:
        """Whether the delta is here now, or must be asked for again."""
        try:
            self._receive(source)
        except DeltaUnusable:
            raise
        except ServerRefused as error:
            if error.status != _BEING_MADE or source is not self.sources.server:
                raise _NoDelta(error, later=error.status >= _ITS_OWN_FAULT) from error
            return False
        except NetworkError as error:
            self.between_chunks()  # which says it again, where it was this that broke off
            if source is self.sources.server and self._size() > begun:
                raise
            raise _NoDelta(error, later=True) from error
        return True

    def _receive(self, source: ServerFiles) -> None:
        url = source.url(delta_path(self.base_sha256, self.sha256))
        with self._delta.open("ab") as file:
            source.resume(
                url, file, most_bytes=self.most_bytes,
                received=lambda chunk: self.sources.received(source, len(chunk), self.between_chunks),
            )  # fmt: skip
        if self._size() > self.most_bytes:
            raise DeltaUnusable(f"longer than {self.most_bytes} bytes, for which there is room and reason")

    def _apply(self) -> None:
        """Write what the delta makes of the base, and sync it.

        Raises:
            DeltaUnusable: That is not the file wanted; nothing of it is left.
        """
        from edge_agent.contract.delta.apply import apply_delta  # zstd's 1 MB is for devices that get deltas

        try:
            with self._delta.open("rb") as delta, self.base.open("rb") as base, self._made.open("wb") as made:
                apply_delta(
                    delta, base, made, base_sha256=self.base_sha256, sha256=self.sha256, size_bytes=self.size_bytes,
                    between_chunks=self.between_chunks,
                )  # fmt: skip
                made.flush()
                os.fsync(made.fileno())
        except DeltaUnusable:
            self._made.unlink(missing_ok=True)
            raise

    def _size(self) -> int:
        return self._delta.stat().st_size if self._delta.exists() else 0

    def _wait(self) -> None:
        for _ in range(4):
            self.sleep(_ASK_AGAIN_S / 4)
            self.between_chunks()
