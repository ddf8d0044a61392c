"""The director: says, signed with a key that the server holds, which package each device should install.

A stolen director key can only choose among packages that the image repository's offline keys vouch for.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import SPECIFICATION_VERSION, Metadata, Root, Snapshot, Targets, Timestamp

from edge_agent.contract.errors import ConfigurationError, ManifestError, ShoalError
from edge_agent.contract.names import check_digest, check_name
from edge_agent.contract.repository import AssignedHardware, Assignment, parse_target
from edge_agent.durable import write_durably
from fleet_server.errors import Conflict
from fleet_server.updates.director_import import import_folders
from fleet_server.updates.director_store import DirectorStore, Signed
from fleet_server.updates.image_repository import root_version
from fleet_server.updates.orders import Order
from fleet_server.updates.signing import signed

_VERSIONED = re.compile(r"([0-9]{1,9})\.(snapshot|targets)\.json")
_ROOT = re.compile(r"[0-9]{1,9}\.root\.json")
# Signed in one transaction: a sync is shared by them, and whoever assigns meanwhile waits no longer than that.
_BATCH = 500


def load_signer(path: Path, passphrase: str | None = None) -> CryptoSigner:
    """The private key in a PEM file.

    Raises:
        ConfigurationError: The file cannot be read, others may read it, it is no key, or needs another passphrase.
    """
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigurationError(f"{path}: others than its owner may read it; chmod 600 {path}")
        key = load_pem_private_key(path.read_bytes(), passphrase.encode() if passphrase else None)
        return CryptoSigner(key)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{path}: cannot be used as the director's key: {error}") from error


class _Target(msgspec.Struct, frozen=True):
    """A target as TUF writes it."""

    length: int
    hashes: dict[str, str]
    custom: Assignment


class _Body(msgspec.Struct, frozen=True):
    targets: dict[str, _Target]


class _TargetsFile(msgspec.Struct, frozen=True):
    signed: _Body


_TARGETS_FILE = msgspec.json.Decoder(_TargetsFile)


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Director:
    """One small TUF repository per device, under one offline root.

    Args:
        folder: ``director.db`` is made in it; folders of earlier versions are brought into that.
        root: Root metadata, made offline, that names the signer's key for targets, snapshot and timestamp.
        lifetime: For how long what is signed may be believed; :meth:`refresh` signs it anew at half of that.
    Raises:
        ConfigurationError: The root does not name the signer's key, or the store is damaged.
        StorageFull, StorageNotWritable: The disk refuses.
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
        self._roots = folder / "director-roots"
        self._signer, self._lifetime, self._utc_now = signer, lifetime, utc_now
        self._keyid = signer.public_key.keyid
        self._lock = threading.RLock()
        self.root = root.decode()
        self._root_version = version = root_version(root, "director")
        roles = Metadata[Root].from_bytes(root).signed.roles
        for role in (Targets.type, Snapshot.type, Timestamp.type):
            if self._keyid not in roles[role].keyids:
                raise ConfigurationError(
                    f"director root metadata: its {role} role does not name the director's key; where "
                    "`shoal server init` was broken off, run it once more"
                )
        folder.mkdir(parents=True, exist_ok=True)
        self._store = DirectorStore(folder / "director.db")
        self._damaged = import_folders(folder / "director", self._store)
        if self.metadata("", f"{version}.root.json") != root:
            self._roots.mkdir(parents=True, exist_ok=True)
            write_durably(self._roots / f"{version}.root.json", root)

    def close(self) -> None:
        """Let go of the file with what was signed; nothing may follow."""
        self._store.close()

    def assign(self, device: str, target: str, length: int, sha256: str, assignment: Assignment) -> None:
        """Name the package that a device should install; targets of its other models stay.

        Args:
            target: Path as :func:`edge_agent.contract.repository.target_name` gives it.
            length, sha256: Of the package's manifest.
        Raises:
            ManifestError: Device, target or digest is not well formed.
            Conflict: The release is not above the last one of this device and model. The last one may be given again
                for the same package, and then only its hardware may be another.
        """
        order = Order(device=device, target=target, length=length, sha256=sha256, assignment=assignment)
        for error in self.assign_many([order]).values():
            raise error

    def assign_many(self, orders: Sequence[Order]) -> dict[str, ShoalError]:
        """As :meth:`assign` for many devices, durable together when it returns.

        Returns:
            What was wrong with the orders of single devices, for which nothing was signed; all others are.
        Raises:
            ConfigurationError, StorageFull, StorageNotWritable: The store cannot be written: nothing was signed.
        """
        failures: dict[str, ShoalError] = {}
        for start in range(0, len(orders), _BATCH):
            with self._lock:
                self._assign(orders[start : start + _BATCH], failures)
        return failures

    def readdress(self, hardware: Mapping[str, AssignedHardware]) -> dict[str, ShoalError]:
        """Put these devices' hardware into what they were assigned, under the same release, where it names other.

        Returns, Raises:
            As :meth:`assign_many`.
        """
        orders: list[Order] = []
        failures: dict[str, ShoalError] = {}
        for device, one in hardware.items():
            try:
                targets = self._newest(device)[1]
            except ConfigurationError as error:
                failures[device] = error
                continue
            for path, target in targets.items():
                before = target.custom.hardware
                # Where an earlier version named none, nothing is wrong with that.
                if before is None or _kind(before) == _kind(one):
                    continue
                assignment = msgspec.structs.replace(target.custom, hardware=one)
                sha256 = target.hashes["sha256"]
                orders.append(
                    Order(device=device, target=path, length=target.length, sha256=sha256, assignment=assignment)
                )
        return failures | self.assign_many(orders)

    def release_of(self, device: str, model: str) -> int:
        """The last release assigned to a device for a model; 0 where there was none. The next one must be higher.

        Raises:
            ManifestError, ConfigurationError: ``device`` is no name; its documents are damaged.
        """
        assignment = self.assignment(device, model)
        return assignment.release if assignment is not None else 0

    def assignment(self, device: str, model: str) -> Assignment | None:
        """What a device was assigned last for a model.

        Raises:
            ManifestError, ConfigurationError: As :meth:`release_of`.
        """
        check_name(device, "device")
        found = _of_model(self._newest(device)[1], model)
        return found[1].custom if found is not None else None

    def refresh(self, now: dt.datetime | None = None) -> int:
        """Sign anew what has lived half of its time, and what an earlier key has signed; gives for how many devices.

        Raises:
            ExceptionGroup: That of some devices could not be; all others have theirs.
        """
        now = now or self._utc_now()
        due = self._store.due((now + self._lifetime / 2).timestamp(), self._keyid)
        count, failures = 0, []
        for start in range(0, len(due), _BATCH):
            rows: list[Signed] = []
            with self._lock:
                for device in due[start : start + _BATCH]:
                    try:
                        rows.append(self._sign(device, *self._newest(device), now=now))
                    except ConfigurationError as error:  # what the other devices have must not expire
                        failures.append(error)
                self._store.put(rows)
            count += len(rows)
        if failures:
            raise ExceptionGroup("devices whose metadata could not be signed anew", failures)
        return count

    def devices(self) -> list[str]:
        """Devices that were ever assigned anything."""
        return self._store.devices()

    def metadata(self, device: str, name: str) -> bytes | None:
        """A metadata file of a device by its name in a URL; None where there is none.

        No root above ours is offered, though ``shoal server init`` may have left one for the next start: devices that
        followed it would refuse all that our key signs.

        Raises:
            ManifestError: ``device`` is no name.
            ConfigurationError, StorageFull, StorageNotWritable: What an earlier key signed cannot be signed anew.
        """
        if _ROOT.fullmatch(name):
            if int(name.partition(".")[0]) > self._root_version:
                return None
            try:
                return (self._roots / name).read_bytes()
            except FileNotFoundError:
                return None
        check_name(device, "device")
        if name == "timestamp.json":
            return self._timestamp(device)
        match = _VERSIONED.fullmatch(name)
        return self._store.document(device, int(match[1]), match[2]) if match is not None else None

    def _timestamp(self, device: str) -> bytes | None:
        found = self._store.timestamp(device)
        if found is None or found[1] == self._keyid:
            return found[0] if found is not None else None
        with self._lock:  # the root that we offer does not name that key, and `refresh` has yet to come to this device
            row = self._sign(device, *self._newest(device))
            self._store.put([row])
        return row.timestamp

    def _assign(self, orders: Sequence[Order], failures: dict[str, ShoalError]) -> None:
        wanted: dict[str, tuple[int, Mapping[str, _Target]]] = {}
        changed: set[str] = set()
        for order in orders:
            try:
                version, targets = wanted.get(order.device) or self._newest(check_name(order.device, "device"))
                after = _ordered(targets, order)
            except (ManifestError, ConfigurationError, Conflict) as error:  # the other devices are told all the same
                failures[order.device] = error
                continue
            wanted[order.device] = (version, after)
            if after is not targets:
                changed.add(order.device)
        rows = [self._sign(device, *wanted[device]) for device in wanted if device in changed - failures.keys()]
        if rows:
            self._store.put(rows)

    def _newest(self, device: str) -> tuple[int, Mapping[str, _Target]]:
        """Version and targets of a device; 0 and none before the first."""
        found = self._store.newest(device)
        if found is None:
            if device in self._damaged:
                raise ConfigurationError(f"the files of {device} in director/ are damaged; restore them from a backup")
            return 0, {}
        version, data = found
        try:
            return version, _TARGETS_FILE.decode(data or b"").signed.targets
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"what director.db has of {device}, version {version}, is damaged ({error}); restore it from a backup"
            ) from error

    def _sign(
        self, device: str, version: int, targets: Mapping[str, _Target], *, now: dt.datetime | None = None
    ) -> Signed:
        """The three documents of the version after ``version``: always signed together, with one number."""
        version += 1
        # TUF's times have whole seconds.
        expires = ((now or self._utc_now()) + self._lifetime).replace(microsecond=0)
        head = {
            "expires": f"{expires.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}", "version": version,
            "spec_version": ".".join(SPECIFICATION_VERSION),
        }  # fmt: skip
        first = signed({"_type": Targets.type, "targets": targets, **head}, self._signer)
        meta = {"targets.json": _meta(version, first)}
        second = signed({"_type": Snapshot.type, "meta": meta, **head}, self._signer)
        meta = {"snapshot.json": _meta(version, second)}
        third = signed({"_type": Timestamp.type, "meta": meta, **head}, self._signer)
        return Signed(
            device=device, version=version, expires_s=int(expires.timestamp()), keyid=self._keyid,
            targets=first, snapshot=second, timestamp=third,
        )  # fmt: skip


def _ordered(targets: Mapping[str, _Target], order: Order) -> Mapping[str, _Target]:
    """The targets of a device after an order; the very same object where it changes nothing."""
    device, wanted = order.device, _Target(order.length, {"sha256": order.sha256}, order.assignment)
    check_digest(order.sha256, order.target)
    model = parse_target(order.target)[0]
    if order.assignment.device != device:
        raise Conflict(f"the assignment is for {order.assignment.device!r}, not for {device!r}")
    before = _of_model(targets, model)
    if before == (order.target, wanted):
        return targets
    if before is not None and order.assignment.release <= before[1].custom.release:
        hardware = order.assignment.hardware
        same = msgspec.structs.replace(before[1].custom, hardware=hardware)
        if (before[0], msgspec.structs.replace(before[1], custom=same)) != (order.target, wanted):
            raise Conflict(
                f"device {device}, {model}: release {order.assignment.release} is not above the last one, "
                f"{before[1].custom.release}"
            )
    kept = {path: one for path, one in targets.items() if parse_target(path)[0] != model}
    return {**kept, order.target: wanted}


def _kind(hardware: AssignedHardware) -> tuple[str, str]:
    """What a device compares."""
    return hardware.architecture, hardware.accelerator


def _of_model(targets: Mapping[str, _Target], model: str) -> tuple[str, _Target] | None:
    return next(((path, one) for path, one in targets.items() if parse_target(path)[0] == model), None)


def _meta(version: int, data: bytes) -> dict[str, Any]:
    return {"version": version, "length": len(data), "hashes": {"sha256": hashlib.sha256(data).hexdigest()}}
