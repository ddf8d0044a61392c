"""python-tuf's client, mended for a device whose power may go at any moment, and whose server may be anybody.

What it mends in ``tuf.ngclient.Updater`` 7.0: no file was synced; the link to the newest root was removed before it was
made again; a delegated role that one delegator vouched for was believed when another one was asked; lengths that stolen
keys had signed were downloaded, however large; targets were downloaded anew after each interruption, and copied to
their place bit by bit; small files went through the system's /tmp; a chain of roots had an end.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from tuf.api import exceptions
from tuf.api.metadata import Key, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge_agent.contract.errors import NetworkError, ServerRefused
from edge_agent.durable import sync_folder, write_durably
from edge_agent.update.root_history import RootHistory
from edge_agent.update.server_files import ServerFiles

_log = logging.getLogger(__name__)
# Far above what a fleet needs, far below what would hurt a small device.
LIMITS = UpdaterConfig(
    max_root_rotations=64, max_delegations=16, root_max_length=256_000, timestamp_max_length=16_384,
    snapshot_max_length=1_000_000, targets_max_length=4_000_000,
)  # fmt: skip
# All metadata of one look at a repository; a device that hears one byte at a time must not listen for ever.
TOTAL_S = 300.0
_FILE_S = 60.0
_COPY_BYTES = 1 << 20


class DurableUpdater(Updater):
    """One look at one repository: :meth:`refresh` once, then targets.

    Args:
        folder: Where verified metadata is kept.
        url: Base URL of the metadata.
        root: Root metadata to begin with where nothing newer was reached from it before.
        now: Time that expiry is measured by.
        total_s: Longest time that the metadata may take in all.
        target_folder, target_url: For :meth:`download_target`, where it is used.
        same_keys: A role that the top-level targets delegate to may itself delegate to its own keys only, as many of
            them. TUF knows no such rule; it is that of a repository whose roles delegate to hash bins alone.
    Raises:
        RepositoryError: ``root`` is no valid root metadata.
        OSError: The folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        files: ServerFiles,
        *,
        root: bytes,
        now: dt.datetime,
        total_s: float = TOTAL_S,
        target_folder: Path | None = None,
        target_url: str | None = None,
        same_keys: bool = False,
    ) -> None:
        self.folder, self._files = folder, files
        self._same_keys = same_keys
        self._needed: dict[str, tuple[int, dict[str, Key | None]]] = {}
        self._history = RootHistory(folder / "root_history", root)
        super().__init__(
            str(folder), url, str(target_folder) if target_folder else None, target_url,
            fetcher=_Fetcher(files, total_s), config=LIMITS, bootstrap=self._history.newest(),
        )  # fmt: skip
        self._trusted_set.reference_time = now

    def top_level_root(self) -> Root:
        """The root that all else was verified by."""
        return self._trusted_set.root

    def top_level_targets(self) -> Targets:
        """The top-level targets, after :meth:`refresh`."""
        return self._trusted_set.targets

    def download_target(
        self, targetinfo: TargetFile, filepath: str | None = None, target_base_url: str | None = None
    ) -> str:
        """Download a target: continued where it broke off, verified, synced, and only then at its place.

        Raises:
            ValueError: Nobody said where from or where to.
            RepositoryError: The bytes are not those that were signed; they are deleted.
            DownloadError: The download broke off; what came is kept.
            OSError: The disk refuses.
        """
        base = target_base_url or self._target_base_url
        if base is None:
            raise ValueError("give target_base_url, here or to the constructor")
        place = Path(filepath or self._generate_target_file_path(targetinfo))
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part")
        resumed = part.exists()
        url = f"{base.rstrip('/')}/{self._target_path(targetinfo)}"
        try:
            self._fill(part, url, targetinfo)
        except exceptions.LengthOrHashMismatchError:
            # The target changed since, or a power cut left holes: only bytes of one go are held against the server.
            if not resumed:
                raise
            self._fill(part, url, targetinfo)
        part.replace(place)
        sync_folder(place.parent)
        return str(place)

    def _target_path(self, target: TargetFile) -> str:
        if not (self._trusted_set.root.consistent_snapshot and self.config.prefix_targets_with_hash):
            return target.path
        folder, slash, name = target.path.rpartition("/")
        return f"{folder}{slash}{next(iter(target.hashes.values()))}.{name}"

    def _fill(self, part: Path, url: str, target: TargetFile) -> None:
        with part.open("a+b") as file:
            if file.tell() < target.length:
                try:
                    self._files.resume(url, file, most_bytes=target.length, received=lambda _chunk: None)
                except ServerRefused as error:
                    raise exceptions.DownloadHTTPError(str(error), error.status) from error
                except NetworkError as error:
                    raise exceptions.DownloadError(str(error)) from error
            file.flush()
            file.seek(0)
            try:
                target.verify_length_and_hashes(file)
            except exceptions.LengthOrHashMismatchError:
                part.unlink()
                raise
            os.fsync(file.fileno())

    def _load_root(self) -> None:
        super()._load_root()
        version, lowest = self._trusted_set.root.version, self._history.lowest_version
        if version < lowest:
            raise exceptions.RepositoryError(f"root version {version} is older than version {lowest}, seen before")
        self._history.reached(version)

    def _load_targets(self, role: str, parent_role: str) -> Targets:
        """The metadata of a role, verified by the delegator that asks now, whoever vouched for it before.

        Two delegators may name one role with other keys. What one of them vouches for says nothing about the other, so
        nothing that was loaded on an earlier way through the delegations is reused, other than through its file.
        """
        if role == Targets.type and role in self._trusted_set:  # which the root alone delegates
            return self._trusted_set.targets
        if self._same_keys and role != Targets.type:
            self._check_keys(role, parent_role)
        try:
            data = self._load_local_metadata(role)
            return self._trusted_set.update_delegated_targets(data, role, parent_role)
        except (OSError, exceptions.RepositoryError) as error:
            _log.debug("%s is fetched: the file here: %s", role, error)
        meta = self._trusted_set.snapshot.meta.get(f"{role}.json")
        if meta is None:
            raise exceptions.RepositoryError(f"role {role} was delegated but is not part of the snapshot")
        version = meta.version if self._trusted_set.root.consistent_snapshot else None
        data = self._download_metadata(role, meta.length or self.config.targets_max_length, version)
        targets = self._trusted_set.update_delegated_targets(data, role, parent_role)
        self._persist_metadata(role, data)
        return targets

    def _check_keys(self, role: str, parent_role: str) -> None:
        """Else who got an approver to sign a model's role once could hand all later releases to whom they like."""
        parent = cast("Targets", self._trusted_set[parent_role])
        rule, keys = parent.get_delegated_role(role), parent.delegations.keys if parent.delegations else {}
        # An identifier may stand for any key (TUF, 4.2): what it stands for must be the same, too.
        needed = rule.threshold, {keyid: keys.get(keyid) for keyid in rule.keyids}
        if parent_role != Targets.type and needed != self._needed[parent_role]:
            raise exceptions.RepositoryError(
                f"role {role} needs other keys, or another number of them, than {parent_role}, which delegates to it"
            )
        self._needed[role] = needed

    def _download_metadata(self, rolename: str, length: int, version: int | None = None) -> bytes:
        # The length may have been signed with a stolen key.
        limits = {
            Root.type: self.config.root_max_length,
            Timestamp.type: self.config.timestamp_max_length,
            Snapshot.type: self.config.snapshot_max_length,
        }
        return super()._download_metadata(
            rolename, min(length, limits.get(rolename, self.config.targets_max_length)), version
        )

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        try:
            if path.read_bytes() == data:
                return  # spares the flash a write: the root comes by at every start
        except FileNotFoundError:
            pass
        except IsADirectoryError:  # a file system check has strange ideas
            shutil.rmtree(path)
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
    """Metadata over our own connections, all of it within a total time."""

    def __init__(self, files: ServerFiles, total_s: float) -> None:
        self._files, self._total_s = files, total_s
        self._until: float | None = None

    def _fetch(self, url: str) -> Iterator[bytes]:
        # What the base class would download targets with; ours does not come here.
        with self._files.get(url) as body:
            yield from body.chunks

    def download_bytes(self, url: str, max_length: int) -> bytes:
        now = time.monotonic()
        self._until = now + self._total_s if self._until is None else self._until
        if now >= self._until:
            raise exceptions.DownloadError(f"{url}: the metadata took {self._total_s:.0f} s; the server is too slow")
        try:
            data = self._files.read(url, limit_bytes=max_length, deadline_s=min(_FILE_S, self._until - now))
        except ServerRefused as error:
            raise exceptions.DownloadHTTPError(str(error), error.status) from error
        except NetworkError as error:
            raise exceptions.DownloadError(str(error)) from error
        if data is None:
            raise exceptions.DownloadLengthMismatchError(f"{url}: longer than the {max_length} bytes allowed")
        return data
