"""The image repository: which packages exist. The server holds none of its keys: it checks, stores and shows."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from edge_agent.contract.errors import ConfigurationError, ManifestError
from edge_agent.contract.manifest import EVALUATION_FILE, Manifest, decode_manifest, digest_of
from edge_agent.contract.repository import parse_target
from edge_agent.durable import write_durably
from fleet_server.updates.blobs import BlobStore
from fleet_server.updates.errors import UploadRefused
from fleet_server.updates.image_roles import all_targets
from fleet_server.updates.image_verification import (
    TIMESTAMP_FILE,
    VerifiedUpload,
    shown_names,
    shown_roles,
    shown_targets,
    verify_upload,
)

_log = logging.getLogger(__name__)
OnRelease = Callable[[Manifest, str, dict[str, Any]], None]

_METADATA_NAME = re.compile(r"[0-9]{1,9}\.[a-z0-9_-]{1,80}\.json|timestamp\.json")
_MANIFEST_LIMIT_BYTES = 4 << 20
# Its metadata is signed already, where the publisher is: nothing else gets past it.
_AGAIN = "upload the package again: `shoal trainer publish PACKAGE`"


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class ImageRepository:
    """Metadata and package files in a folder.

    Args:
        folder: ``image/`` holds the metadata, ``blobs/`` the files; made where it is missing.
        root: Root metadata, made offline: the trust anchor that every upload is checked from.
        on_release: Told once of each package that became visible, with its digest and evaluation. After a crash
            between the two it is told at the next :meth:`announce`.
    Raises:
        ConfigurationError: ``root`` is no root metadata signed by its own keys.
    """

    def __init__(
        self, folder: Path, *, root: bytes, on_release: OnRelease, utc_now: Callable[[], dt.datetime] = _utc_now
    ) -> None:
        self.blobs = BlobStore(folder)
        self._metadata, self._pending = folder / "image", folder / "image-releases-to-announce.json"
        self._anchor, self._on_release, self._utc_now = root, on_release, utc_now
        self._lock = threading.RLock()
        self._roles: tuple[bytes | None, dict[str, Targets]] = (None, {})
        self._named: dict[str, frozenset[str]] = {}  # files by the manifest that names them; both by digest
        version = root_version(root, "image")
        if self.metadata(f"{version}.root.json") is None:
            self._metadata.mkdir(parents=True, exist_ok=True)
            write_durably(self._metadata / f"{version}.root.json", root)

    @property
    def root(self) -> str:
        """The newest root metadata: what a device that enrols now begins with."""
        version = root_version(self._anchor, "image")
        newest = self._anchor
        while (data := self.metadata(f"{version + 1}.root.json")) is not None:
            newest, version = data, version + 1
        return newest.decode()

    def metadata(self, name: str) -> bytes | None:
        """A metadata file by its name in a URL; None where there is none."""
        if _METADATA_NAME.fullmatch(name) is None:
            return None
        try:
            return (self._metadata / name).read_bytes()
        except FileNotFoundError:
            return None

    def roles(self) -> Mapping[str, Targets]:
        """The roles that are shown now, by name; not to be changed. Read anew where the timestamp is another."""
        timestamp = self.metadata(TIMESTAMP_FILE)
        known, roles = self._roles
        if timestamp is None or timestamp != known:
            roles = shown_roles(self.metadata)
            self._roles = (timestamp, roles)
        return roles

    def held_still(self) -> contextlib.AbstractContextManager[bool]:
        """While this lasts, nothing becomes visible."""
        return self._lock

    def shown_files(self) -> dict[str, bytes]:
        """All metadata that is shown now, by file name: the roots, the timestamp, and what it leads to."""
        with self._lock:
            found = {}
            newest = root_version(self.root.encode(), "image")
            roots = [f"{version}.root.json" for version in range(1, newest + 1)]
            for name in (*roots, *shown_names(self.metadata)):
                if (data := self.metadata(name)) is not None:
                    found[name] = data
            return found

    def accept(self, files: Mapping[str, bytes]) -> list[str]:
        """Verify uploaded metadata, then show it, all at once: the timestamp is written last.

        Args:
            files: Bytes by file name: ``timestamp.json``, ``7.snapshot.json``, ``3.digits.json``, ...; what did not
                change may be left out.
        Returns:
            Paths of the targets that are new.
        Raises:
            UploadRefused: Nothing of the metadata is kept. Of the files staged for it those that are not what they are
                called are forgotten; the others stay for a day, so that they need not be sent again.
        """
        with self._lock:
            upload = verify_upload(files, self.metadata, root=self._anchor, now=self._utc_now())
            fresh = self._fresh(upload) if upload is not None else {}
            needed = self._needed(fresh)
            if upload is not None:
                self.blobs.release(needed)
                self._show(upload, fresh)
            self.blobs.forget_abandoned()
            self.announce()
            return sorted(fresh)

    def package_files(self, path: str, target: TargetFile) -> tuple[Manifest, dict[str, Any], set[str]]:
        """A package that is to be released: its manifest, its evaluation, and the digests of all its files.

        Raises:
            UploadRefused: A file was not uploaded, or the package is not what its path says.
        """
        needed = self._needed({path: target})
        manifest = self._manifest(path, target.hashes["sha256"], target.length)
        return manifest, self._evaluation(manifest), needed

    def put_back(self, sha256: str) -> None:
        """Let devices have a file that was sent again, where a package that is visible lacked it."""
        with self._lock:
            shown = all_targets(roles) if (roles := self.roles()) else {}
            if self.blobs.released(sha256) is None and any(
                sha256 == digest or sha256 in self._files_of(digest)
                for digest in (target.hashes["sha256"] for target in shown.values())
            ):
                self.blobs.release({sha256})
                _log.warning("released file %s was missing on this disk; it was sent again", sha256[:12])

    def _files_of(self, digest: str) -> frozenset[str]:
        if digest not in self._named:
            path = self.blobs.verified(digest)
            if path is None:
                return frozenset()  # its manifest is sent again before its files are
            try:
                entries = decode_manifest(path.read_bytes()).files.values()
            except ManifestError:  # what was released was checked: this is a newer format
                return frozenset()
            self._named[digest] = frozenset(entry.sha256 for entry in entries)
        return self._named[digest]

    def announce(self) -> None:
        """Tell of packages that became visible and were not told of; call it at the start of the server."""
        with self._lock:
            if not self._pending.exists():
                return
            pending = msgspec.json.decode(self._pending.read_bytes(), type=dict[str, str])
            shown = shown_targets(self.metadata)
            for path, digest in sorted(pending.items()):
                target = shown.get(path)
                if target is not None and target.hashes["sha256"] == digest:
                    manifest = decode_manifest(self._read(digest, path))
                    self._on_release(manifest, digest, self._evaluation(manifest))
                write_durably(self._pending, msgspec.json.encode({k: v for k, v in pending.items() if k > path}))
            self._pending.unlink()

    def to_announce(self) -> set[str]:
        """Paths of packages that are visible, or about to be, and were not told of."""
        try:
            return set(msgspec.json.decode(self._pending.read_bytes(), type=dict[str, str]))
        except FileNotFoundError:
            return set()

    def _fresh(self, upload: VerifiedUpload) -> dict[str, TargetFile]:
        shown = shown_targets(self.metadata)
        for path, target in upload.targets.items():
            before = shown.get(path)
            if before is not None and (before.hashes, before.length) != (target.hashes, target.length):
                raise UploadRefused(f"{path!r} is released already with other contents: give it a new version")
        return {path: target for path, target in upload.targets.items() if path not in shown}

    def _needed(self, fresh: Mapping[str, TargetFile]) -> set[str]:
        """Digests of all files of the new packages, each of which must be here."""
        needed: set[str] = set()
        for path, target in fresh.items():
            digest = target.hashes["sha256"]
            manifest = self._manifest(path, digest, target.length)
            entries = manifest.files.values()
            needed |= {digest, *(entry.sha256 for entry in entries)}
            for name, entry in manifest.files.items():
                blob = self.blobs.find(entry.sha256)
                what = f"{path}: file {name!r} ({entry.sha256[:12]})"
                if blob is None:
                    raise UploadRefused(f"{what} was not uploaded before; {_AGAIN}")
                if (size_bytes := blob.stat().st_size) != entry.size_bytes:
                    why = f"; it is damaged; {_AGAIN}" if self.blobs.forget_damaged(entry.sha256) else ""
                    raise UploadRefused(f"{what} has {size_bytes} bytes, the manifest says {entry.size_bytes}{why}")
            self._evaluation(manifest)
        return needed

    def _manifest(self, path: str, digest: str, length: int) -> Manifest:
        data = self._read(digest, path)
        if len(data) != length:
            raise UploadRefused(f"{path}: signed with {length} bytes, the file has {len(data)}")
        try:
            manifest = decode_manifest(data)
        except ManifestError as error:
            raise UploadRefused(f"{path}: {error}") from error
        if (manifest.name, manifest.version) != parse_target(path):
            raise UploadRefused(f"{path}: its manifest says {manifest.name} {manifest.version}")
        return manifest

    def _evaluation(self, manifest: Manifest) -> dict[str, Any]:
        entry = manifest.files.get(EVALUATION_FILE)
        if entry is None:
            return {}
        what = f"{manifest.name} {manifest.version}: {EVALUATION_FILE}"
        try:
            return msgspec.json.decode(self._read(entry.sha256, what), type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UploadRefused(f"{what}: {error}") from error

    def _read(self, sha256: str, what: str) -> bytes:
        path = self.blobs.find(sha256)
        if path is None:
            raise UploadRefused(f"{what}: file {sha256[:12]} was not uploaded before; {_AGAIN}")
        if (size_bytes := path.stat().st_size) > _MANIFEST_LIMIT_BYTES:
            raise UploadRefused(f"{what}: file {sha256[:12]} has {size_bytes} bytes, more than {_MANIFEST_LIMIT_BYTES}")
        data = path.read_bytes()
        if digest_of(data) != sha256:
            self.blobs.forget_damaged(sha256)
            raise UploadRefused(f"{what}: file {sha256[:12]} is damaged on the server's disk; {_AGAIN}")
        return data

    def _show(self, upload: VerifiedUpload, fresh: Mapping[str, TargetFile]) -> None:
        pending = {path: target.hashes["sha256"] for path, target in fresh.items()}
        if self._pending.exists():
            pending = {**msgspec.json.decode(self._pending.read_bytes(), type=dict[str, str]), **pending}
        if pending:
            write_durably(self._pending, msgspec.json.encode(pending))
        for name, data in upload.files.items():
            if self.metadata(name) != data:
                write_durably(self._metadata / name, data)


def root_version(root: bytes, repository: str) -> int:
    """The version of root metadata.

    Raises:
        ConfigurationError: It is none, or not signed by its own keys.
    """
    from tuf.api.exceptions import RepositoryError

    try:
        metadata = Metadata[Root].from_bytes(root)
        metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{repository} root metadata: {error}; make it with `shoal keys init`") from error
    return metadata.signed.version
