"""One file of a package: resumed where a download broke off, verified, then renamed to its place."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from edge_agent.contract.errors import NetworkError, WrongBytes
from edge_agent.contract.repository import blob_path
from edge_agent.update.server_files import ServerFiles
from edge_agent.update.sources import Sources

_CHUNK_BYTES = 1 << 20


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

        A source that is away is passed over; one whose bytes are wrong rests, see :meth:`Sources.rest`.

        Raises:
            NetworkError: No source has it, gave all of it, or gave what was signed; ``part`` keeps what may be right.
            OSError: The disk refuses.
        """
        self.part.parent.mkdir(parents=True, exist_ok=True)
        sources = self.files if isinstance(self.files, Sources) else Sources(self.files)
        failed: NetworkError | None = None
        for source in sources.each():
            failed = self._failure(source, sources)
            if failed is None:
                break
        if failed is not None:
            raise failed
        place.parent.mkdir(parents=True, exist_ok=True)
        self.part.replace(place)

    def _failure(self, source: ServerFiles, sources: Sources) -> NetworkError | None:
        """Why the file did not come from one source; None where it is here."""
        try:
            self._from(source, sources)
        except WrongBytes as error:
            return sources.rest(source, error)
        except NetworkError as error:
            self.between_chunks()  # which says it again, where it was this that broke off
            return error
        return None

    def _from(self, source: ServerFiles, sources: Sources) -> None:
        resumed = self.part.exists() and self.part.stat().st_size > 0
        try:
            self._fill(source, sources)
        except WrongBytes:
            # A power cut can leave holes in the part file, and another mirror wrong bytes: only bytes fetched in one go
            # are held against whoever sent them.
            if not resumed or self.part.exists():
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
            raise WrongBytes(f"{where}: expected sha256 {self.sha256[:12]}, got {digest.hexdigest()[:12]}")

    def _fetch(self, file: BinaryIO, digest: hashlib._Hash, source: ServerFiles, sources: Sources) -> hashlib._Hash:
        """Append what is missing; gives the digest of the whole."""

        def received(chunk: bytes) -> None:
            nonlocal digest
            if file.tell() == len(chunk):
                digest = hashlib.sha256()
            digest.update(chunk)
            sources.received(source, len(chunk), self.between_chunks)

        url = source.url(blob_path(self.sha256))
        source.resume(url, file, most_bytes=self.size_bytes, size_bytes=self.size_bytes, received=received)
        return digest
