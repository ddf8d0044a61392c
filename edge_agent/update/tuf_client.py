"""python-tuf's client, mended for a device whose power may go at any moment.

What it mends in ``tuf.ngclient.Updater`` 7.0: no file was synced; the link to the newest root was removed before it was
made again; expiry was measured by a clock that may have gone back; small files went through the system's /tmp.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path

from tuf.api import exceptions
from tuf.api.metadata import TargetFile, Targets
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge_agent.contract.errors import MetadataRefused, NetworkError, ServerRefused, storage_error
from edge_agent.durable import sync_folder, write_durably
from edge_agent.update.server_files import ServerFiles

# Far above what a fleet needs, far below what would hurt a small device.
_LIMITS = UpdaterConfig(
    max_root_rotations=64, max_delegations=8, root_max_length=256_000, timestamp_max_length=16_384,
    snapshot_max_length=1_000_000, targets_max_length=4_000_000,
)  # fmt: skip


class TrustedClient:
    """The metadata of one TUF repository, verified from a root that came with the device's enrolment.

    Args:
        name: What errors call the repository: ``image`` or ``director``.
        folder: Where verified metadata is kept; made where it is missing.
        now: Time that expiry is measured by.
    Raises:
        MetadataRefused: ``root`` is no valid root metadata.
        StorageFull, StorageNotWritable: The folder cannot be written.
    """

    def __init__(self, name: str, folder: Path, url: str, files: ServerFiles, *, root: bytes, now: dt.datetime) -> None:
        self._name = name
        with self._errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._updater = _DurableUpdater(folder, url, _Fetcher(files), root=root, now=now)

    def refresh(self) -> Targets:
        """Bring all top-level metadata up to date; gives the top-level targets.

        Raises:
            MetadataRefused: Unsigned, expired, rolled back or mixed metadata.
            NetworkError: The server cannot be reached, or has no metadata.
            StorageFull, StorageNotWritable: It cannot be kept.
        """
        with self._errors(self._updater.folder):
            self._updater.refresh()
        return self._updater.top_level_targets()

    def target(self, path: str) -> TargetFile | None:
        """What the repository says about a target, delegations followed; None where it does not know it.

        Raises:
            As :meth:`refresh`.
        """
        with self._errors(self._updater.folder):
            return self._updater.get_targetinfo(path)

    @contextlib.contextmanager
    def _errors(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except (exceptions.RepositoryError, exceptions.DownloadLengthMismatchError) as error:
            raise MetadataRefused(f"{self._name} repository: {error}") from error
        except exceptions.DownloadError as error:
            cause = error.__cause__
            raise cause if isinstance(cause, NetworkError) else NetworkError(f"{self._name}: {error}") from error
        except OSError as error:
            raise storage_error(error, str(folder)) or error from error


class _DurableUpdater(Updater):
    """The stock client with files that survive a power cut and a time that does not go back."""

    def __init__(self, folder: Path, url: str, fetcher: FetcherInterface, *, root: bytes, now: dt.datetime) -> None:
        self.folder = folder
        super().__init__(str(folder), url, fetcher=fetcher, config=_LIMITS, bootstrap=root)
        self._trusted_set.reference_time = now

    def top_level_targets(self) -> Targets:
        return self._trusted_set.targets

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        try:
            if path.read_bytes() == data:
                return  # spares the flash a write: the bootstrap root comes by at every start
        except FileNotFoundError:
            pass
        write_durably(path, data)

    def _update_root_symlink(self) -> None:
        target = Path("root_history") / f"{self._trusted_set.root.version}.root.json"
        link = self.folder / "root.json"
        if link.is_symlink() and link.readlink() == target:
            return
        # A rename over the link leaves no moment without one.
        beside = self.folder / ".root.json.new"
        beside.unlink(missing_ok=True)
        beside.symlink_to(target)
        beside.replace(link)
        sync_folder(self.folder)


class _Fetcher(FetcherInterface):
    def __init__(self, files: ServerFiles) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        # Only the base class's download of targets comes here; metadata comes through download_bytes.
        with self._files.get(url) as (_, chunks):
            yield from chunks

    def download_bytes(self, url: str, max_length: int) -> bytes:
        try:
            data = self._files.read(url, limit_bytes=max_length)
        except ServerRefused as error:
            raise exceptions.DownloadHTTPError(str(error), error.status) from error
        except NetworkError as error:
            raise exceptions.DownloadError(str(error)) from error
        if data is None:
            raise exceptions.DownloadLengthMismatchError(f"{url}: longer than the {max_length} bytes allowed")
        return data


class ClockFloor:
    """A time that never goes back, kept on disk: a device with an empty clock battery wakes up in 1970 or 2000.

    The floor rises only to a time at which fresh metadata was verified. A clock that runs ahead would have found that
    metadata expired, so it cannot push the floor further ahead than the shortest metadata lifetime.
    """

    def __init__(self, path: Path, clock: Callable[[], dt.datetime]) -> None:
        self._path, self._clock = path, clock

    def now(self) -> dt.datetime:
        """The clock's time, or the floor where the clock is behind it."""
        clock = self._clock()
        try:
            floor = dt.datetime.fromisoformat(self._path.read_text().strip())
        except (FileNotFoundError, ValueError):
            return clock
        return max(clock, floor)

    def rise(self, verified_at: dt.datetime) -> None:
        """Never again believe in a time before ``verified_at``."""
        write_durably(self._path, (verified_at.isoformat() + "\n").encode())
