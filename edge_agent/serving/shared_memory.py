"""System shared memory that applications register: tensors lie there instead of in the request or the answer.

A region is never mapped into this process. Its owner may truncate it at any time, and to touch a mapped page beyond
the end of a file kills the process (SIGBUS); a positioned read or write beyond it only comes back short. The copy
costs about 100 us per megabyte. Names and keys are the protocol's ("Shared Memory Extension").
"""

from __future__ import annotations

import os
import stat
import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.contract.errors import Busy, MalformedRequest, StorageFull, UnknownRegion, storage_error

Buffer = bytes | bytearray | memoryview

FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open(3) keeps its objects
MAX_REGIONS = 64
MAX_REGISTERED_BYTES = 1024 * 1024 * 1024
MAX_TENSOR_BYTES = 16 * 1024 * 1024
_MAX_NAME = 128
# Larger copies count: of these there may be so many times the longest tensor at once. A request that only names a
# region is tiny, so the room that requests are promised by their size says nothing of it.
_COUNTED_BYTES = 64 * 1024
_COPIES = 4
# O_NOFOLLOW: a link in there must not lead to another file. O_NONBLOCK: a pipe in there must not hold us up.
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _Region:
    """One registered region and its open file, which stays open until nobody reads or writes it."""

    __slots__ = ("byte_size", "fd", "key", "name", "offset", "retired", "users")

    def __init__(self, name: str, key: str, offset: int, byte_size: int, fd: int) -> None:
        self.name, self.key, self.offset, self.byte_size, self.fd = name, key, offset, byte_size, fd
        self.users, self.retired = 0, False

    def at(self, offset: int, size: int) -> int:
        """Where ``size`` bytes at ``offset`` of the region begin in its file.

        Raises:
            MalformedRequest: They are not all within the region.
        """
        if offset + size > self.byte_size:
            raise MalformedRequest(
                f"shared memory region '{self.name}': offset {offset} and {size} bytes reach to byte {offset + size}, "
                f"the region has {self.byte_size}"
            )
        return self.offset + offset


class _Use:
    """One reader or writer of a region; a generator's context would take twice its time."""

    __slots__ = ("_lock", "_region")

    def __init__(self, region: _Region, lock: AbstractContextManager[bool]) -> None:
        self._region, self._lock = region, lock

    def __enter__(self) -> _Region:
        return self._region

    def __exit__(self, *_: object) -> None:
        region = self._region
        with self._lock:
            region.users -= 1
            if region.retired and region.users == 0:
                os.close(region.fd)


class Regions:
    """The registered regions, by name. Every method may be called from any thread.

    Args:
        folder: Where POSIX shared memory objects are files.
        max_regions: Most regions at once; each holds a file open.
        max_bytes: Most bytes of all regions together.
        max_tensor_bytes: Most bytes that one tensor is read from a region.
    """

    def __init__(
        self,
        *,
        folder: Path = FOLDER,
        max_regions: int = MAX_REGIONS,
        max_bytes: int = MAX_REGISTERED_BYTES,
        max_tensor_bytes: int = MAX_TENSOR_BYTES,
    ) -> None:
        self._folder = folder
        self._max_regions, self._max_bytes, self._max_tensor_bytes = max_regions, max_bytes, max_tensor_bytes
        self._regions: dict[str, _Region] = {}
        self._copied_bytes = 0
        # Reentrant: a copy may be given up while this very thread holds it, in the garbage collector.
        self._lock = threading.RLock()

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Let requests use ``byte_size`` bytes from ``offset`` on of the shared memory object ``key``.

        Args:
            key: As shm_open(3) takes it: ``/x``, or ``x``.
        Raises:
            MalformedRequest: The name is taken, the key leads nowhere, the object is too small, or a limit is reached.
        """
        if not name or len(name) > _MAX_NAME:
            raise MalformedRequest(f"a shared memory region needs a name of 1 to {_MAX_NAME} characters")
        if offset < 0 or byte_size < 1:
            raise MalformedRequest(
                f"shared memory region '{name}': needs an offset of at least 0 and a byte_size of at least 1, got "
                f"{offset} and {byte_size}"
            )
        fd = self._open(name, key)
        try:
            _check_object(name, key, offset + byte_size, os.fstat(fd))
            self._add(_Region(name, key, offset, byte_size, fd))
        except BaseException:
            os.close(fd)
            raise

    def unregister(self, name: str | None = None) -> None:
        """Forget a region, or all of them; one that is not there is no error, as in other servers.

        Requests that use it in this moment end as if it were still there.
        """
        with self._lock:
            names = list(self._regions) if name is None else [name]
            gone = [region for region in (self._regions.pop(each, None) for each in names) if region is not None]
            for region in gone:
                region.retired = True
                if region.users == 0:
                    os.close(region.fd)

    def close(self) -> None:
        """Forget all regions."""
        self.unregister()

    def status(self, name: str | None = None) -> list[dict[str, Any]]:
        """Name, key, offset and byte_size of all regions, or of one.

        Raises:
            UnknownRegion: There is none of this name.
        """
        with self._lock:
            found = sorted(self._regions.values(), key=lambda region: region.name)
            if name is not None:
                found = [self._get(name)]
        return [{key: getattr(region, key) for key in ("name", "key", "offset", "byte_size")} for region in found]

    def check(self, name: str, offset: int, size: int) -> None:
        """Whether ``size`` bytes at ``offset`` lie within a region.

        Raises:
            UnknownRegion: There is none of this name.
            MalformedRequest: They do not.
        """
        with self._lock:
            self._get(name).at(offset, size)

    def read(self, name: str, offset: int, size: int) -> memoryview:
        """A copy of ``size`` bytes at ``offset``, aligned for every datatype.

        Raises:
            UnknownRegion: There is none of this name.
            MalformedRequest: They are not within it, or its owner has truncated it.
            Busy: Requests in progress hold as many copies as there may be.
        """
        if size > self._max_tensor_bytes:
            raise MalformedRequest(
                f"shared memory region '{name}': {size} bytes of one tensor, the limit is {self._max_tensor_bytes} "
                "(max_body_mib under [api] in the agent's settings)"
            )
        with self._using(name) as region:
            at = region.at(offset, size)
            copy = self._room(size)
            done = os.preadv(region.fd, [copy], at)
            while done < size:  # a signal came between, or its owner has truncated it
                count = os.preadv(region.fd, [copy[done:]], at + done)
                if count == 0:
                    raise self._truncated(region)
                done += count
        return copy

    def write(self, name: str, offset: int, data: Sequence[Buffer]) -> None:
        """Put bytes at ``offset``, one piece after the other; the region does not grow.

        Raises:
            UnknownRegion: There is none of this name (any more).
            MalformedRequest: They do not fit, or its owner has truncated it.
            StorageFull: No memory is left for pages that nobody has written yet.
        """
        size = sum(len(piece) for piece in data)
        with self._using(name) as region:
            at = region.at(offset, size)
            if os.fstat(region.fd).st_size < at + size:
                raise self._truncated(region)
            try:
                for piece in data:
                    done = 0
                    while done < len(piece):
                        done += os.pwrite(region.fd, piece[done:] if done else piece, at + done)
                    at += done
            except OSError as error:
                full = storage_error(error, f"shared memory region '{name}'")
                raise full or StorageFull(f"shared memory region '{name}': {error.strerror}") from error

    def _room(self, size: int) -> memoryview:
        """Memory for a copy, counted as long as anybody uses it."""
        copy = np.empty(size, dtype=np.uint8)
        if size > _COUNTED_BYTES:
            limit = _COPIES * self._max_tensor_bytes
            with self._lock:
                if self._copied_bytes + size > limit:
                    raise Busy(
                        f"requests in progress hold {self._copied_bytes} bytes of shared memory, with this one more "
                        f"than the limit of {limit} ({_COPIES} times max_body_mib under [api]): ask again in a moment"
                    )
                self._copied_bytes += size
            weakref.finalize(copy, self._give_back, size)
        return copy.data

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._copied_bytes -= size

    def _open(self, name: str, key: str) -> int:
        """Open the object behind a key; nothing but a file right inside the folder."""
        file = key.lstrip("/")  # as shm_open does
        if not file or "/" in file or "\0" in file or file in {".", ".."} or len(file.encode()) > 255:
            raise MalformedRequest(
                f"shared memory region '{name}': key {key!r:.80} is none of shm_open(3): '/' and a name without '/'"
            )
        try:
            return os.open(self._folder / file, _FLAGS)
        except FileNotFoundError as error:
            raise MalformedRequest(
                f"shared memory region '{name}': there is no shared memory object '{key}'; make it first"
            ) from error
        except PermissionError as error:
            raise MalformedRequest(
                f"shared memory region '{name}': this user may not read and write '{key}'; its owner may allow it "
                "(fchmod, or a group that both are in)"
            ) from error
        except OSError as error:  # a link, a folder, a device
            raise MalformedRequest(f"shared memory region '{name}': '{key}': {error.strerror}") from error

    def _add(self, region: _Region) -> None:
        with self._lock:
            if region.name in self._regions:
                raise MalformedRequest(
                    f"shared memory region '{region.name}' is registered already; unregister it first"
                )
            if len(self._regions) >= self._max_regions:
                raise MalformedRequest(
                    f"shared memory region '{region.name}': {len(self._regions)} regions are registered, the limit: "
                    "unregister one first"
                )
            total = region.byte_size + sum(other.byte_size for other in self._regions.values())
            if total > self._max_bytes:
                raise MalformedRequest(
                    f"shared memory region '{region.name}': all regions together would have {total} bytes, the limit "
                    f"is {self._max_bytes}: unregister one first"
                )
            self._regions[region.name] = region

    def _get(self, name: str) -> _Region:
        region = self._regions.get(name)
        if region is None:
            raise UnknownRegion(f"shared memory region '{name}' is not registered: register it first")
        return region

    def _using(self, name: str) -> _Use:
        """Keep a region's file open for the length of a ``with`` block."""
        with self._lock:
            region = self._get(name)
            region.users += 1
        return _Use(region, self._lock)

    @staticmethod
    def _truncated(region: _Region) -> MalformedRequest:
        return MalformedRequest(
            f"shared memory region '{region.name}': '{region.key}' is shorter than when it was registered: its owner "
            "has truncated it; register it again"
        )


def _check_object(name: str, key: str, end: int, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise MalformedRequest(f"shared memory region '{name}': '{key}' is no shared memory object")
    if end > found.st_size:
        raise MalformedRequest(
            f"shared memory region '{name}': offset and byte_size reach to byte {end}, '{key}' has {found.st_size}"
        )
