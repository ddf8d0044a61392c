"""The director: says, signed with a key that the server holds, which package each device should install.

A stolen director key can only choose among packages that the image repository's offline keys vouch for.
"""

from __future__ import annotations

import datetime as dt
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from edge_agent.contract.errors import ConfigurationError
from edge_agent.contract.names import check_digest, check_name
from edge_agent.contract.repository import Assignment, parse_target
from edge_agent.durable import write_durably
from fleet_server.errors import Conflict
from fleet_server.updates.image_repository import root_version

_VERSIONED = re.compile(r"([0-9]{1,9})\.(snapshot|targets)\.json")
_ROOT = re.compile(r"[0-9]{1,9}\.root\.json")
_R = TypeVar("_R", Targets, Snapshot, Timestamp)
_KEPT_VERSIONS = 3  # devices may be reading the one before


def load_signer(path: Path, passphrase: str | None = None) -> CryptoSigner:
    """The private key in a PEM file.

    Raises:
        ConfigurationError: The file cannot be read, is no key, or needs another passphrase.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), passphrase.encode() if passphrase else None)
        return CryptoSigner(key)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{path}: cannot be used as the director's key: {error}") from error


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Director:
    """One small TUF repository per device, under one offline root.

    Args:
        folder: ``director/DEVICE/`` is made in it.
        root: Root metadata, made offline, that names the signer's key for targets, snapshot and timestamp.
        lifetime: For how long what is signed may be believed; :meth:`refresh` signs it anew at half of that.
    Raises:
        ConfigurationError: The root does not name the signer's key.
    """

    def __init__(
        self,
        folder: Path,
        *,
        root: bytes,
        signer: Signer,
        lifetime: dt.timedelta = dt.timedelta(days=7),
        utc_now: Callable[[], dt.datetime] = _utc_now,
    ) -> None:
        self._folder, self._roots = folder / "director", folder / "director-roots"
        self._signer, self._lifetime, self._utc_now = signer, lifetime, utc_now
        self._lock = threading.RLock()
        self.root = root.decode()
        version = root_version(root, "director")
        roles = Metadata[Root].from_bytes(root).signed.roles
        for role in (Targets.type, Snapshot.type, Timestamp.type):
            if signer.public_key.keyid not in roles[role].keyids:
                raise ConfigurationError(f"director root metadata: its {role} role does not name the director's key")
        if self.metadata("", f"{version}.root.json") != root:
            self._roots.mkdir(parents=True, exist_ok=True)
            write_durably(self._roots / f"{version}.root.json", root)

    def assign(self, device: str, target: str, length: int, sha256: str, assignment: Assignment) -> None:
        """Name the package that a device should install; targets of its other models stay.

        Args:
            target: Path as :func:`edge_agent.contract.repository.target_name` gives it.
            length, sha256: Of the package's manifest.
        Raises:
            ManifestError: Device, target or digest is not well formed.
            Conflict: The release is not above the last one of this device and model.
        """
        check_name(device, "device")
        check_digest(sha256, target)
        model = parse_target(target)[0]
        if assignment.device != device:
            raise Conflict(f"the assignment is for {assignment.device!r}, not for {device!r}")
        custom = {"custom": msgspec.to_builtins(assignment)}
        wanted = TargetFile(length, {"sha256": sha256}, target, unrecognized_fields=custom)
        with self._lock:
            targets = self._targets(device)
            if targets.get(target) == wanted:
                return
            release = _release(targets, model)
            if assignment.release <= release:
                raise Conflict(
                    f"device {device}, {model}: release {assignment.release} is not above the last one, {release}"
                )
            kept = {path: one for path, one in targets.items() if parse_target(path)[0] != model}
            self._sign(device, {**kept, target: wanted})

    def release_of(self, device: str, model: str) -> int:
        """The last release assigned to a device for a model; 0 where there was none. The next one must be higher."""
        check_name(device, "device")
        with self._lock:
            return _release(self._targets(device), model)

    def refresh(self, now: dt.datetime | None = None) -> int:
        """Sign anew what has lived half of its time; gives for how many devices.

        Raises:
            ExceptionGroup: That of some devices could not be; all others have theirs.
        """
        now = now or self._utc_now()
        count, failures = 0, []
        for device in self.devices():
            try:
                with self._lock:
                    timestamp = self._timestamp(device)
                    if timestamp is not None and timestamp.expires - now < self._lifetime / 2:
                        self._sign(device, self._targets(device), now=now)
                        count += 1
            except (ConfigurationError, OSError) as error:  # what the other devices have must not expire
                failures.append(error)
        if failures:
            raise ExceptionGroup("devices whose metadata could not be signed anew", failures)
        return count

    def devices(self) -> list[str]:
        """Devices that were ever assigned anything."""
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if path.is_dir())

    def metadata(self, device: str, name: str) -> bytes | None:
        """A metadata file of a device by its name in a URL; None where there is none."""
        if _ROOT.fullmatch(name):
            path = self._roots / name
        elif name == "timestamp.json" or _VERSIONED.fullmatch(name):
            path = self._folder / check_name(device, "device") / name
        else:
            return None
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def _timestamp(self, device: str) -> Timestamp | None:
        data = self.metadata(device, "timestamp.json")
        return self._read(device, "timestamp.json", data, Timestamp) if data is not None else None

    def _targets(self, device: str) -> dict[str, TargetFile]:
        timestamp = self._timestamp(device)
        if timestamp is None:
            return {}
        # The three are always signed together, with one version.
        data = self.metadata(device, f"{timestamp.version}.targets.json")
        if data is None:
            raise ConfigurationError(
                f"{self._folder / device}: {timestamp.version}.targets.json is missing; restore it from a backup"
            )
        return dict(self._read(device, f"{timestamp.version}.targets.json", data, Targets).targets)

    def _read(self, device: str, name: str, data: bytes, role: type[_R]) -> _R:
        try:
            found = Metadata.from_bytes(data).signed
        except DeserializationError as error:
            raise ConfigurationError(
                f"{self._folder / device / name} is damaged ({error}); restore it from a backup"
            ) from error
        if not isinstance(found, role):
            raise ConfigurationError(f"{self._folder / device / name} holds {found.type}; restore it from a backup")
        return found

    def _sign(self, device: str, targets: dict[str, TargetFile], *, now: dt.datetime | None = None) -> None:
        """Sign and store; visible at once when the timestamp, written last, is there."""
        before = self._timestamp(device)
        version = before.version + 1 if before is not None else 1
        # TUF's times have whole seconds.
        expires = ((now or self._utc_now()) + self._lifetime).replace(microsecond=0)
        folder = self._folder / device
        folder.mkdir(parents=True, exist_ok=True)
        data = self._signed(Targets(version=version, expires=expires, targets=targets))
        write_durably(folder / f"{version}.targets.json", data)
        meta = MetaFile.from_data(version, data, ["sha256"])
        data = self._signed(Snapshot(version=version, expires=expires, meta={"targets.json": meta}))
        write_durably(folder / f"{version}.snapshot.json", data)
        meta = MetaFile.from_data(version, data, ["sha256"])
        write_durably(
            folder / "timestamp.json", self._signed(Timestamp(version=version, expires=expires, snapshot_meta=meta))
        )
        self._forget_before(folder, version - _KEPT_VERSIONS)

    def _signed(self, role: _R) -> bytes:
        metadata = Metadata(role)
        metadata.sign(self._signer)
        return metadata.to_bytes()

    def _forget_before(self, folder: Path, version: int) -> None:
        for path in folder.iterdir():
            match = _VERSIONED.fullmatch(path.name)
            if match is not None and int(match[1]) <= version:
                path.unlink()


def _release(targets: dict[str, TargetFile], model: str) -> int:
    releases = [
        msgspec.convert(target.custom, Assignment).release
        for path, target in targets.items()
        if parse_target(path)[0] == model
    ]
    return max(releases, default=0)
