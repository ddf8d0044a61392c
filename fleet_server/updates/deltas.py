"""Deltas between released files: made when a device first asks for one, kept on disk, forgotten when room is short."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tuf.api.metadata import TargetFile

from edge_agent.contract.delta.form import VERSION
from edge_agent.contract.delta.make import LEVEL, make_delta
from edge_agent.contract.errors import ManifestError
from edge_agent.contract.manifest import TENSORS_FILE, Manifest, decode_manifest
from edge_agent.contract.stored_tensors import StoredFile, decode_stored_tensors
from fleet_server.updates.blobs import BlobStore

_log = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-f]{64}")
# A delta of more than that is not worth a device's work, nor a file of fewer bytes a request.
_WORTH = 0.9
_LEAST_BYTES = 1024
# Without a layout nothing is known of a file but its bytes: a graph, a profile, a card; weights would not get smaller.
_MOST_PLAIN_BYTES = 2 << 20
_MANIFEST_LIMIT_BYTES = 4 << 20
_LAYOUT_LIMIT_BYTES = 32 << 20
_UNDER_WAY = ".making-"
_NICE = 10


class _NotWorthIt(Exception):
    """The delta grows beyond what is saved by it."""


class _Damaged(Exception):
    """A file is not what it is called."""


class _Stopped(Exception):
    """The server stops."""


@dataclass(frozen=True)
class _Place:
    """Where a file is found.

    Args:
        layout: SHA-256 of its package's ``tensors.json``; empty where it has none.
    """

    model: str
    path: str
    layout: str


class Deltas:
    """Makes and keeps deltas.

    Args:
        folder: Where they are kept; made where it is missing.
        blobs: The released files.
        targets: Tells all released packages, by target path.
        limit_bytes: Most that is kept; what was asked for least lately goes first. What the fleet can use now it asks
            for, so that stays.
        most_kept: Deltas that are kept at most, and notes that one is not worth it.
        max_waiting: Deltas that may wait to be made; further ones are not made now.
    """

    def __init__(
        self,
        folder: Path,
        blobs: BlobStore,
        targets: Callable[[], Mapping[str, TargetFile]],
        *,
        limit_bytes: int = 4 << 30,
        most_kept: int = 20_000,
        max_waiting: int = 32,
        level: int = LEVEL,
    ) -> None:
        # Deltas of another form would be refused by devices: each form has its own folder.
        self._folder = folder / f"v{VERSION}"
        self._blobs, self._targets, self._level = blobs, targets, level
        self._limit_bytes, self._most_kept, self._max_waiting = limit_bytes, most_kept, max_waiting
        self._lock = threading.Lock()
        self._places: dict[str, set[_Place]] = {}
        self._read: set[str] = set()
        self._making: dict[str, Future[None]] = {}
        self._stopping = threading.Event()
        # One thread, below all others: devices that ask for what exists are served first.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deltas", initializer=_yield_to_others)
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(f"{_UNDER_WAY}*"):
            left.unlink()

    def find(self, base: str, sha256: str) -> Path | Future[None] | None:
        """The delta that makes one file of another.

        Returns:
            Its file; or what is done once it has been made, or found not worth it: ask again then; or None where there
            is none.
        """
        kept = self._kept(base, sha256)
        if kept is not None:
            with contextlib.suppress(FileNotFoundError):  # forgotten at this very moment: it is made again
                return kept if kept.stat().st_size else None
        old, new = self._released(base), self._released(sha256)
        if old is None or new is None or base == sha256 or new.stat().st_size < _LEAST_BYTES:
            return None
        with self._lock:
            under_way = self._making.get(_name(base, sha256))
            if under_way is not None:
                return under_way
        layouts = self._layouts(base, sha256)
        if layouts is None or (not layouts[1].tensors and new.stat().st_size > _MOST_PLAIN_BYTES):
            return None
        return self._begin(base, sha256, old, new, layouts)

    def make_ahead(self, base: Manifest, manifest: Manifest) -> None:
        """Begin with the deltas from one package to the next of the same model, before devices ask for them."""
        for path, entry in manifest.files.items():
            if path in base.files:
                self.find(base.files[path].sha256, entry.sha256)

    def close(self) -> None:
        """End the work under way; what was not finished is made when it is asked for again."""
        self._stopping.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _released(self, sha256: str) -> Path | None:
        return self._blobs.released(sha256) if _DIGEST.fullmatch(sha256) else None

    def _whole(self, sha256: str, limit_bytes: int) -> Path | None:
        blob = self._released(sha256)
        return None if blob is None or blob.stat().st_size > limit_bytes else self._blobs.verified(sha256)

    def _kept(self, base: str, sha256: str) -> Path | None:
        """The delta's file; an empty one says that it is not worth it."""
        if not (_DIGEST.fullmatch(base) and _DIGEST.fullmatch(sha256)):
            return None
        path = self._folder / _name(base, sha256)
        try:
            os.utime(path)  # lately asked for
        except FileNotFoundError:
            return None
        return path

    def _begin(
        self, base: str, sha256: str, old: Path, new: Path, layouts: tuple[StoredFile, StoredFile]
    ) -> Future[None] | None:
        name = _name(base, sha256)
        with self._lock:
            if name not in self._making:
                if len(self._making) >= self._max_waiting or self._stopping.is_set():
                    return None
                self._making[name] = self._thread.submit(self._make, name, old, new, layouts)
            return self._making[name]

    def _make(self, name: str, old: Path, new: Path, layouts: tuple[StoredFile, StoredFile]) -> None:
        beside = self._folder / f"{_UNDER_WAY}{name}"
        try:
            self._write(beside, name, old, new, layouts)
            beside.replace(self._folder / name)
            self._prune(name)
        except Exception as error:  # noqa: BLE001  whatever it was, half a delta must not be taken for one
            # Nothing is decided: whoever asks next begins anew, and until then the whole file is there.
            beside.unlink(missing_ok=True)
            _log.log(logging.INFO if isinstance(error, _Stopped) else logging.WARNING, "no delta %s: %r", name, error)
        finally:
            with self._lock:
                self._making.pop(name, None)

    def _write(self, beside: Path, name: str, old: Path, new: Path, layouts: tuple[StoredFile, StoredFile]) -> None:
        """Write the delta, or nothing where it is not worth it."""
        for sha256 in name.split("-"):  # of other bytes comes a delta that no device can use
            if self._blobs.verified(sha256) is None:
                raise _Damaged(f"file {sha256[:12]} is damaged on this disk")
        most = int(_WORTH * new.stat().st_size)
        with old.open("rb") as base, new.open("rb") as target, beside.open("wb") as out:
            try:
                make_delta(
                    base, target, out, base_layout=layouts[0], layout=layouts[1], level=self._level,
                    between_chunks=functools.partial(self._check, out, most),
                )  # fmt: skip
                self._check(out, most)
            except (_NotWorthIt, ManifestError) as error:
                if isinstance(error, ManifestError):
                    _log.warning("no delta %s: %s", name, error)
                out.seek(0)
                out.truncate()
            # A power cut must not leave it empty: that would say for all time that it is not worth it.
            out.flush()
            os.fsync(out.fileno())

    def _check(self, out: BinaryIO, most: int) -> None:
        if self._stopping.is_set():
            raise _Stopped
        if out.tell() > most:
            raise _NotWorthIt

    def _prune(self, newest: str) -> None:
        """Forget deltas, and that some are not worth it, until the limits are kept, but not the newest."""
        found = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size, path))
        total, left = sum(size for _, size, _ in found), len(found)
        for _, size, path in sorted(found):
            # Without bytes there is none to win by forgetting, while there are few enough of them.
            if path.name != newest and (left > self._most_kept or (size and total > self._limit_bytes)):
                path.unlink(missing_ok=True)
                total, left = total - size, left - 1

    def _layouts(self, base: str, sha256: str) -> tuple[StoredFile, StoredFile] | None:
        """How both files lie, where they are the same file of two versions of a model; else None."""
        with self._lock:
            if base not in self._places or sha256 not in self._places:
                self._look()
            old, new = self._places.get(base, set()), self._places.get(sha256, set())
        best: tuple[StoredFile, StoredFile] | None = None
        for before, after in _same_file(old, new):
            found = self._layout(before), self._layout(after)
            if found[1].base == base:  # its steps are about this very base
                return found
            if best is None or (found[1].tensors and not best[1].tensors):
                best = found
        return best

    def _look(self) -> None:
        """Note down the files of packages that were not looked at yet."""
        for target in self._targets().values():
            digest = target.hashes.get("sha256", "")
            if digest in self._read or (blob := self._whole(digest, _MANIFEST_LIMIT_BYTES)) is None:
                continue
            self._read.add(digest)
            with contextlib.suppress(ManifestError):  # what was released was checked: this is a newer format
                manifest = decode_manifest(blob.read_bytes())
                layout = manifest.files.get(TENSORS_FILE)
                for path, entry in manifest.files.items():
                    place = _Place(manifest.name, path, layout.sha256 if layout else "")
                    self._places.setdefault(entry.sha256, set()).add(place)

    def _layout(self, place: _Place) -> StoredFile:
        blob = self._whole(place.layout, _LAYOUT_LIMIT_BYTES)
        if blob is None:
            return StoredFile()
        try:
            return decode_stored_tensors(blob.read_bytes()).files.get(place.path, StoredFile())
        except ManifestError as error:
            _log.warning("%s of %s: %s", place.path, place.model, error)
            return StoredFile()


def _same_file(old: Iterable[_Place], new: Iterable[_Place]) -> Iterator[tuple[_Place, _Place]]:
    for before in sorted(old, key=str):
        for after in sorted(new, key=str):
            if (before.model, before.path) == (after.model, after.path):
                yield before, after


def _name(base: str, sha256: str) -> str:
    return f"{base}-{sha256}"


def _yield_to_others() -> None:
    with contextlib.suppress(OSError):  # Linux has it by thread; elsewhere it is no matter
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
