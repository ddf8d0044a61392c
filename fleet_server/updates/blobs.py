"""Package files under their SHA-256: staged until signed metadata names them, only then to be had by devices."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from edge_agent.contract.errors import storage_error
from edge_agent.durable import sync_folder
from fleet_server.updates.errors import UploadRefused

_DIGEST = re.compile(r"[0-9a-f]{64}")
_STAGED_S = 24 * 3600.0
_UNDER_WAY = "."


class BlobStore:
    """``blobs`` is served to devices, ``staged`` is what publishers have sent so far, ``held`` waits for approval.

    Args:
        folder: Made where it is missing.
        limit_bytes: Largest file accepted.
    """

    def __init__(self, folder: Path, *, limit_bytes: int = 8 << 30) -> None:
        self._blobs, self._staged, self._limit_bytes = folder / "blobs", folder / "staged", limit_bytes
        self._held = folder / "held"
        self._all = (self._blobs, self._held, self._staged)
        for part in self._all:
            part.mkdir(parents=True, exist_ok=True)

    def released(self, sha256: str) -> Path | None:
        """The file, where signed metadata names it."""
        path = self._blobs / sha256
        return path if _DIGEST.fullmatch(sha256) and path.is_file() else None

    def find(self, sha256: str) -> Path | None:
        """The file, released, held or staged."""
        if _DIGEST.fullmatch(sha256) is None:
            return None
        return next((path for path in (one / sha256 for one in self._all) if path.is_file()), None)

    @contextlib.contextmanager
    def receive(self, sha256: str) -> Iterator[Receiver]:
        """Take a file in: write its chunks to the receiver; at the end it is staged, or refused and forgotten.

        Raises:
            UploadRefused: It is not the file it is called, or too large.
            StorageFull, StorageNotWritable: The disk refuses; nothing of it is kept.
        """
        if not _DIGEST.fullmatch(sha256):
            raise UploadRefused(f"{sha256!r} is no SHA-256 in lowercase hexadecimal")
        try:
            with self._written_beside(sha256) as receiver:
                yield receiver
        except OSError as error:
            raise storage_error(error, str(self._staged)) or error from error

    @contextlib.contextmanager
    def _written_beside(self, sha256: str) -> Iterator[Receiver]:
        descriptor, name = tempfile.mkstemp(prefix=_UNDER_WAY, dir=self._staged)
        beside = Path(name)
        try:
            receiver = Receiver(descriptor, self._limit_bytes)
            try:
                yield receiver
                found = receiver.finish()
            finally:
                os.close(descriptor)
            if found != sha256:
                raise UploadRefused(f"the bytes sent as {sha256[:12]} have SHA-256 {found[:12]}; send them again")
            beside.chmod(0o644)
            beside.replace(self._staged / sha256)
            sync_folder(self._staged)
        finally:
            beside.unlink(missing_ok=True)

    def release(self, digests: set[str]) -> None:
        """Let devices have these files, durably; they must be here already."""
        for sha256 in digests:
            path = self.find(sha256)
            if path is not None and path.parent != self._blobs:
                path.replace(self._blobs / sha256)
        sync_folder(self._blobs)

    def hold(self, digests: set[str]) -> None:
        """Keep these files for as long as it takes until somebody approves; devices do not get them."""
        for sha256 in digests:
            path = self.find(sha256)
            if path is not None and path.parent == self._staged:
                path.replace(self._held / sha256)
        sync_folder(self._held)

    def forget_held(self, *, but: set[str]) -> None:
        """Remove files whose release was refused; those of others that wait stay."""
        for path in self._held.iterdir():
            if path.name not in but:
                path.unlink()

    def forget_staged(self, *, older_than_s: float = 0.0) -> None:
        """Remove files that nothing signed ever named; what is being sent at this moment stays."""
        for path in self._staged.iterdir():
            least_s = max(older_than_s, _STAGED_S) if path.name.startswith(_UNDER_WAY) else older_than_s
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime >= least_s:
                    path.unlink()

    def forget_abandoned(self) -> None:
        """Remove what a publisher sent a day ago and never signed."""
        self.forget_staged(older_than_s=_STAGED_S)


class Receiver:
    """Where the chunks of one upload go."""

    def __init__(self, descriptor: int, limit_bytes: int) -> None:
        self._descriptor, self._limit_bytes = descriptor, limit_bytes
        self._digest, self._size = hashlib.sha256(), 0

    def write(self, chunk: bytes) -> None:
        """The next bytes.

        Raises:
            UploadRefused: There are too many.
        """
        self._size += len(chunk)
        if self._size > self._limit_bytes:
            raise UploadRefused(f"the file is larger than {self._limit_bytes} bytes")
        self._digest.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def finish(self) -> str:
        """SHA-256 of all that came; it is on disk then."""
        os.fsync(self._descriptor)
        return self._digest.hexdigest()
