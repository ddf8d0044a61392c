"""One file of a package: resumed where a download broke off, verified, then renamed to its place."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from edge_agent.contract.errors import DigestMismatch, NetworkError, ServerRefused
from edge_agent.contract.repository import blob_path
from edge_agent.update.server_files import ServerFiles
from edge_agent.update.sources import Sources

_CHUNK_BYTES = 1 << 20
_RANGE_NOT_SATISFIABLE = 416


@dataclasses.dataclass(frozen=True, kw_only=True)
class Download:
    """A file to fetch by its digest.

    Args:
        files: Where it comes from: mirrors and the server, or the server alone.
        part: Where the bytes gather; what an earlier attempt left there is kept and continued.
        between_chunks: Called again and again meanwhile.
    """

    files: Sources | ServerFiles
    sha256: str
    size_bytes: int
    part: Path
    between_chunks: Callable[[], None]

    def to(self, place: Path) -> None:
        """Download to ``place``, which appears verified and synced, or not at all.

        A mirror that is away is passed over, and one whose bytes are wrong is not asked any more.

        Raises:
            DigestMismatch: The server's bytes are not those asked for; they are deleted.
            NetworkError: The download broke off at all sources; ``part`` keeps what came.
            OSError: The disk refuses.
        """
        self.part.parent.mkdir(parents=True, exist_ok=True)
        sources = self.files if isinstance(self.files, Sources) else Sources(self.files)
        for source in sources.each():
            try:
                self._from(source, sources)
                break
            except NetworkError:
                self.between_chunks()  # which says it again, where it was this that broke off
                if source is sources.server:
                    raise
            except DigestMismatch as error:
                if source is sources.server:
                    raise
                sources.drop(source, error)
        place.parent.mkdir(parents=True, exist_ok=True)
        self.part.replace(place)

    def _from(self, source: ServerFiles, sources: Sources) -> None:
        resumed = self.part.exists()
        try:
            self._fill(source, sources)
        except DigestMismatch:
            # A power cut can leave holes in the part file, and another mirror wrong bytes: only bytes fetched in one go
            # are held against whoever sent them.
            if not resumed:
                raise
            self._fill(source, sources)

    def _fill(self, source: ServerFiles, sources: Sources) -> None:
        with self.part.open("a+b") as file:
            digest = hashlib.sha256()
            file.seek(0)
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
            if file.tell() < self.size_bytes:
                digest = self._fetch(file, digest, source, sources)
            file.flush()
            have = file.tell()
            os.fsync(file.fileno())
        if have != self.size_bytes or digest.hexdigest() != self.sha256:
            self.part.unlink()
            where = f"{source.url(blob_path(self.sha256))} ({have} of {self.size_bytes} bytes)"
            raise DigestMismatch(where, expected=self.sha256, actual=digest.hexdigest())

    def _fetch(self, file: BinaryIO, digest: hashlib._Hash, source: ServerFiles, sources: Sources) -> hashlib._Hash:
        """Append what is missing; gives the digest of the whole."""
        have = file.tell()
        try:
            with source.get(source.url(blob_path(self.sha256)), offset=have) as (resumed, chunks):
                if have and not resumed:  # the server sends all of it
                    file.seek(0)
                    file.truncate()
                    digest = hashlib.sha256()
                self._append(file, digest, chunks, lambda count: sources.received(source, count, self.between_chunks))
        except ServerRefused as error:
            if error.status != _RANGE_NOT_SATISFIABLE:
                raise
            # The server's file ends before ours does: ours is wrong, and the size check will say so.
        return digest

    def _append(
        self, file: BinaryIO, digest: hashlib._Hash, chunks: Iterator[bytes], received: Callable[[int], None]
    ) -> None:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            if file.tell() > self.size_bytes:
                return  # longer than signed: the size check will say so
            received(len(chunk))
