"""One file of a package: resumed where a download broke off, verified, then renamed to its place."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from edge_agent.contract.errors import DigestMismatch, ServerRefused
from edge_agent.contract.repository import blob_path
from edge_agent.update.server_files import ServerFiles

_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Download:
    """A file to fetch by its digest.

    Args:
        part: Where the bytes gather; what an earlier attempt left there is kept and continued.
        between_chunks: Called again and again meanwhile.
    """

    files: ServerFiles
    sha256: str
    size_bytes: int
    part: Path
    between_chunks: Callable[[], None]

    def to(self, place: Path) -> None:
        """Download to ``place``, which appears verified and synced, or not at all.

        Raises:
            DigestMismatch: The bytes are not those asked for; they are deleted.
            NetworkError: The download broke off; ``part`` keeps what came.
            OSError: The disk refuses.
        """
        self.part.parent.mkdir(parents=True, exist_ok=True)
        resumed = self.part.exists()
        try:
            self._fill()
        except DigestMismatch:
            # A power cut can leave holes in the part file: only bytes fetched in one go are held against the server.
            if not resumed:
                raise
            self._fill()
        place.parent.mkdir(parents=True, exist_ok=True)
        self.part.replace(place)

    def _fill(self) -> None:
        with self.part.open("a+b") as file:
            digest = hashlib.sha256()
            file.seek(0)
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
            if file.tell() < self.size_bytes:
                digest = self._fetch(file, digest)
            file.flush()
            have = file.tell()
            os.fsync(file.fileno())
        if have != self.size_bytes or digest.hexdigest() != self.sha256:
            self.part.unlink()
            where = f"{blob_path(self.sha256)} ({have} of {self.size_bytes} bytes)"
            raise DigestMismatch(where, expected=self.sha256, actual=digest.hexdigest())

    def _fetch(self, file: BinaryIO, digest: hashlib._Hash) -> hashlib._Hash:
        """Append what is missing; gives the digest of the whole."""
        have = file.tell()
        try:
            with self.files.get(self.files.url(blob_path(self.sha256)), offset=have) as (resumed, chunks):
                if have and not resumed:  # the server sends all of it
                    file.seek(0)
                    file.truncate()
                    digest = hashlib.sha256()
                self._append(file, digest, chunks)
        except ServerRefused as error:
            if error.status != 416:
                raise
            # The server's file ends before ours does: ours is wrong, and the size check will say so.
        return digest

    def _append(self, file: BinaryIO, digest: hashlib._Hash, chunks: Iterator[bytes]) -> None:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            if file.tell() > self.size_bytes:
                return  # longer than signed: the size check will say so
            self.between_chunks()
