"""Package files under their SHA-256: staged until signed metadata names them, only then to be had by devices."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from edge_agent.contract.errors import storage_error
from edge_agent.durable import sync_folder
from fleet_server.updates.errors import UploadRefused

_log = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_STAGED_S = 24 * 3600.0
_UNDER_WAY = "."
_DAMAGED = ".damaged"


class BlobStore:
    """``blobs`` is served to devices, ``staged`` is what publishers have sent so far, ``held`` waits for approval.

    Args:
        folder: Made where it is missing.
        limit_bytes: Largest file accepted.
        staged_limit_bytes: Most that is staged together; what was sent or asked for least lately goes first.
    """

    def __init__(self, folder: Path, *, limit_bytes: int = 8 << 30, staged_limit_bytes: int = 32 << 30) -> None:
        self._blobs, self._staged, self._limit_bytes = folder / "blobs", folder / "staged", limit_bytes
        self._staged_limit_bytes = staged_limit_bytes
        self._lock = threading.Lock()  # what is about to be released is not forgotten meanwhile
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

    def needed(self, sha256: str) -> Path | None:
        """The file as :meth:`verified` has it, for a publisher who will not send it again: where staged, it stays."""
        path = self.verified(sha256)
        if path is not None and path.parent == self._staged:
            try:
                os.utime(path)
            except FileNotFoundError:  # forgotten, or released, at this very moment
                return self.find(sha256)
        return path

    def verified(self, sha256: str) -> Path | None:
        """The file as :meth:`find` has it, read whole: one that is not what it is called is none, and is taken away."""
        path = self.find(sha256)
        return None if path is None or self.forget_damaged(sha256) else path

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
        self.forget_abandoned(but=sha256)

    def release(self, digests: set[str]) -> None:
        """Let devices have these files, durably: all of them, or none.

        Raises:
            UploadRefused: One is not here any more.
        """
        with self._lock:
            for sha256, path in self._found(digests).items():
                if path.parent != self._blobs:
                    path.replace(self._blobs / sha256)
                    (self._blobs / f"{sha256}{_DAMAGED}").unlink(missing_ok=True)
        sync_folder(self._blobs)

    def hold(self, digests: set[str]) -> None:
        """Keep these files for as long as it takes until somebody approves; devices do not get them.

        Raises:
            UploadRefused: One is not here any more.
        """
        with self._lock:
            for sha256, path in self._found(digests).items():
                if path.parent == self._staged:
                    path.replace(self._held / sha256)
        sync_folder(self._held)

    def _found(self, digests: set[str]) -> dict[str, Path]:
        found = {sha256: self.find(sha256) for sha256 in sorted(digests)}
        if gone := [sha256[:12] for sha256, path in found.items() if path is None]:
            raise UploadRefused(f"no longer here: {', '.join(gone[:5])}; upload the package again")
        return {sha256: path for sha256, path in found.items() if path is not None}

    def forget_held(self, *, but: set[str]) -> None:
        """Remove files whose release was refused; those of others that wait stay."""
        with self._lock:
            for path in self._held.iterdir():
                if path.name not in but:
                    path.unlink()

    def forget_damaged(self, sha256: str) -> bool:
        """Take a file away that is not what it is called, so that it is sent again; a released one is put aside.

        It is read for that: whoever signs a wrong size or length must not be able to remove what others wait for.

        Returns:
            Whether it was.
        """
        path = self.find(sha256)
        if path is None or _is_whole(path, sha256):
            return False
        with self._lock:
            if path.parent == self._blobs:
                aside = path.with_name(sha256 + _DAMAGED)
                with contextlib.suppress(FileNotFoundError):  # somebody else has just noticed it
                    path.replace(aside)
                    _log.error(
                        "released file %s is damaged on this disk; it is put aside as %s and no device gets it. "
                        "Publish its package again (`shoal trainer publish PACKAGE`), or restore it from a backup; "
                        "check the disk",
                        sha256[:12], aside,
                    )  # fmt: skip
            else:
                path.unlink(missing_ok=True)
        return True

    def forget_abandoned(self, *, but: str = "") -> None:
        """Remove what a publisher sent a day ago and never signed, and the oldest of what is more than the limit.

        Args:
            but: A file that stays: it has just come.
        """
        with self._lock:
            self._forget_abandoned(but)

    def _forget_abandoned(self, but: str) -> None:
        left: list[tuple[float, int, Path]] = []
        for path in self._staged.iterdir():
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if path.name != but and time.time() - stat.st_mtime >= _STAGED_S:
                    path.unlink()
                elif not path.name.startswith(_UNDER_WAY):  # what is being sent at this moment stays
                    left.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in left)
        for _, size, path in sorted(left):
            if total > self._staged_limit_bytes and path.name != but:
                path.unlink(missing_ok=True)
                total -= size


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:  # it has just been taken away, or released: it is found elsewhere, or asked for again
        return True
    except OSError as error:
        if error.errno != errno.EIO:  # a sector that cannot be read is damage; too many open files is none
            raise
        return False


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
