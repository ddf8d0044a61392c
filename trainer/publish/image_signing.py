"""The image repository's metadata, signed in the key folder: what was signed last is what the next version follows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edge_agent.contract.manifest import MANIFEST_FILE
from edge_agent.durable import write_durably
from trainer.publish.errors import PublishRefused, SigningKeyError
from trainer.publish.keys import (
    DIRECTOR,
    DIRECTOR_ROOT,
    IMAGE_ROOT,
    IMAGE_TARGETS,
    SNAPSHOT,
    TIMESTAMP,
    KeyFolder,
    model_key,
    utc_now,
)

_LIFETIMES_FILE = "lifetimes.json"
_R = TypeVar("_R", Root, Snapshot, Targets, Timestamp)


class Lifetimes(msgspec.Struct, frozen=True, kw_only=True):
    """For how many days signatures may be believed.

    Args:
        targets: Also that of each model's role.
        snapshot: Also that of the timestamp: how old news an attacker who holds the network may pass off as new.
    """

    root: float = 365.0
    targets: float = 90.0
    snapshot: float = 7.0


class ImageSigning:
    """Signs the image repository.

    Args:
        keys: Where the keys are; what is signed is kept in its ``image/`` and ``director/``.
        lifetimes: None takes those that the keys were made with.
        now: Time that lifetimes begin at.
    """

    def __init__(
        self, keys: KeyFolder, *, lifetimes: Lifetimes | None = None, now: Callable[[], dt.datetime] = utc_now
    ) -> None:
        self._keys, self._now = keys, now
        self._image, self._director = keys.folder / "image", keys.folder / "director"
        self._lifetimes = lifetimes or self._lifetimes_made_with()

    def create(self, models: tuple[str, ...], *, kind: str = "ed25519") -> None:
        """Make all keys, both roots and an image repository without packages.

        Raises:
            SigningKeyError: There are keys already, or a model cannot be called so.
        """
        names = [model_key(model) for model in models]
        if self._keys.names():
            raise SigningKeyError(f"{self._keys.folder}: there are keys already; choose an empty folder")
        for name in (IMAGE_ROOT, IMAGE_TARGETS, DIRECTOR_ROOT, SNAPSHOT, TIMESTAMP, DIRECTOR, *names):
            self._keys.make(name, kind=kind)
        self._store(self._image / _LIFETIMES_FILE, msgspec.json.encode(self._lifetimes))
        self._create_roots()
        targets = Targets(version=1, expires=self._until(self._lifetimes.targets))
        self._write(self._image / "1.targets.json", targets, IMAGE_TARGETS)
        self._sign_snapshot({"targets": targets})
        for model in models:
            self.add_model(model, kind=kind)

    def add_model(self, model: str, *, kind: str = "ed25519") -> None:
        """Let a key of its own sign the packages of a model. Needs ``offline/image-targets.pem``.

        Raises:
            SigningKeyError: A key is missing, or the model is known already.
        """
        name = model_key(model)
        roles = self._roles()
        targets = roles["targets"]
        delegations = targets.delegations or Delegations(keys={}, roles={})
        known = delegations.roles if delegations.roles is not None else {}
        if model in known:
            raise SigningKeyError(f"{self._keys.folder}: the model {model!r} has its key already")
        signer = self._keys.signer(name) if self._keys.path(name).exists() else self._keys.make(name, kind=kind)
        pattern = f"{model}/*/{MANIFEST_FILE}"
        known[model] = DelegatedRole(model, [], 1, terminating=True, paths=[pattern])
        targets.delegations = Delegations(keys=delegations.keys, roles=known)
        targets.add_key(signer.public_key, model)
        self._sign_targets("targets", targets, IMAGE_TARGETS, roles)
        role = Targets(version=1, expires=self._until(self._lifetimes.targets))
        roles[model] = role
        self._write(self._image / f"1.{model}.json", role, name)
        self._sign_snapshot(roles)

    def add_target(self, model: str, path: str, length: int, sha256: str) -> bool:
        """Sign a package.

        Returns:
            False where it was signed already.
        Raises:
            PublishRefused: The version is taken by another package, or the model has no key.
            SigningKeyError: A key is missing.
        """
        roles = self._roles()
        role = roles.get(model)
        if role is None:
            known = ", ".join(sorted(roles.keys() - {"targets"})) or "none"
            raise PublishRefused(f"model {model!r} has no key here (known: {known}); `shoal keys add-model` makes one")
        wanted = TargetFile(length, {"sha256": sha256}, path)
        signed = role.targets.get(path)
        if signed == wanted:
            return False
        if signed is not None:
            raise PublishRefused(f"{path} is signed already with other contents; give the package a new version")
        role.targets[path] = wanted
        self._sign_targets(model, role, model_key(model), roles)
        self._sign_snapshot(roles)
        return True

    def refresh(self) -> bool:
        """Sign anew what has lived half of its time, as far as the publisher's keys reach; gives whether any had."""
        roles = self._roles()
        stale = [
            model for model, role in roles.items() if model != "targets" and self._old(role, self._lifetimes.targets)
        ]
        for model in stale:
            self._sign_targets(model, roles[model], model_key(model), roles)
        timestamp = self._timestamp()
        if stale or (timestamp is not None and self._old(timestamp, self._lifetimes.snapshot)):
            self._sign_snapshot(roles)
            return True
        return False

    def renew(self) -> None:
        """Sign roots and targets anew for a whole lifetime. Needs the keys in ``offline/``."""
        for folder, key in ((self._director, DIRECTOR_ROOT), (self._image, IMAGE_ROOT)):
            root = self._newest_root(folder)
            root.version, root.expires = root.version + 1, self._until(self._lifetimes.root)
            self._write(folder / f"{root.version}.root.json", root, key)
        roles = self._roles()
        self._sign_targets("targets", roles["targets"], IMAGE_TARGETS, roles)
        self._sign_snapshot(roles)

    def files(self) -> dict[str, bytes]:
        """What the repository consists of now, by file name: what an upload sends."""
        timestamp = self._timestamp()
        if timestamp is None:
            raise SigningKeyError(f"{self._image}: nothing was signed yet; begin with `shoal keys init`")
        names = [f"{version}.root.json" for version in range(1, _root_version(self._image) + 1)]
        names += [f"{role.version}.{name}.json" for name, role in self._roles().items()]
        names += [f"{timestamp.snapshot_meta.version}.snapshot.json", "timestamp.json"]
        return {name: (self._image / name).read_bytes() for name in names}

    def models(self) -> dict[str, list[str]]:
        """The models with a key, each with the paths of its signed packages."""
        return {name: sorted(role.targets) for name, role in self._roles().items() if name != "targets"}

    def expiries(self) -> dict[str, dt.datetime]:
        """When each role expires, by name; ``director-root`` too."""
        found: dict[str, dt.datetime] = {name: role.expires for name, role in self._roles().items()}
        timestamp = self._timestamp()
        if timestamp is not None:
            found |= {"snapshot": timestamp.expires, "timestamp": timestamp.expires}
        for name, folder in (("root", self._image), ("director-root", self._director)):
            found[name] = self._newest_root(folder).expires
        return found

    def _create_roots(self) -> None:
        expires = self._until(self._lifetimes.root)
        image = Root(version=1, expires=expires, consistent_snapshot=True)
        director = Root(version=1, expires=expires, consistent_snapshot=True)
        keys = {
            Root.type: (IMAGE_ROOT, DIRECTOR_ROOT),
            Targets.type: (IMAGE_TARGETS, DIRECTOR),
            Snapshot.type: (SNAPSHOT, DIRECTOR),
            Timestamp.type: (TIMESTAMP, DIRECTOR),
        }
        for role, (image_key, director_key) in keys.items():
            image.add_key(self._keys.signer(image_key).public_key, role)
            director.add_key(self._keys.signer(director_key).public_key, role)
        self._write(self._director / "1.root.json", director, DIRECTOR_ROOT)
        self._write(self._image / "1.root.json", image, IMAGE_ROOT)

    def _newest_root(self, folder: Path) -> Root:
        name = f"{_root_version(folder)}.root.json"
        return self._read(Root, folder / name)

    def _sign_targets(self, name: str, role: Targets, key: str, roles: dict[str, Targets]) -> None:
        role.version += 1
        role.expires = self._until(self._lifetimes.targets)
        self._write(self._image / f"{role.version}.{name}.json", role, key)
        roles[name] = role

    def _sign_snapshot(self, roles: dict[str, Targets]) -> None:
        """Snapshot, then timestamp: until that is written, the versions before are the ones that count."""
        before = self._timestamp()
        version = before.version + 1 if before is not None else 1
        expires = self._until(self._lifetimes.snapshot)
        meta = {
            f"{name}.json": MetaFile.from_data(
                role.version, (self._image / f"{role.version}.{name}.json").read_bytes(), ["sha256"]
            )
            for name, role in roles.items()
        }
        snapshot = Snapshot(version=version, expires=expires, meta=meta)
        data = self._write(self._image / f"{version}.snapshot.json", snapshot, SNAPSHOT)
        timestamp = Timestamp(
            version=version, expires=expires, snapshot_meta=MetaFile.from_data(version, data, ["sha256"])
        )
        self._write(self._image / "timestamp.json", timestamp, TIMESTAMP)

    def _roles(self) -> dict[str, Targets]:
        """Targets and each model's role as they were signed last."""
        timestamp = self._timestamp()
        if timestamp is None:
            raise SigningKeyError(f"{self._image}: nothing was signed yet; begin with `shoal keys init`")
        snapshot = self._read(Snapshot, self._image / f"{timestamp.snapshot_meta.version}.snapshot.json")
        names = sorted(snapshot.meta, key=lambda file: (file != "targets.json", file))
        return {
            file.removesuffix(".json"): self._read(Targets, self._image / f"{snapshot.meta[file].version}.{file}")
            for file in names
        }

    def _timestamp(self) -> Timestamp | None:
        return (
            self._read(Timestamp, self._image / "timestamp.json") if (self._image / "timestamp.json").exists() else None
        )

    def _read(self, kind: type[_R], path: Path) -> _R:
        try:
            signed = Metadata[_R].from_bytes(path.read_bytes()).signed
        except (OSError, RepositoryError) as error:
            raise SigningKeyError(f"{path}: cannot be read: {error}; restore the folder from a backup") from error
        if not isinstance(signed, kind):
            raise SigningKeyError(f"{path}: holds {signed.type} metadata; restore the folder from a backup")
        return signed

    def _write(self, path: Path, role: _R, key: str) -> bytes:
        signer: Signer = self._keys.signer(key)
        metadata = Metadata(role)
        metadata.sign(signer)
        data = metadata.to_bytes()
        self._store(path, data)
        return data

    def _store(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, data)
        except OSError as error:
            raise SigningKeyError(f"{path}: {error.strerror}") from error

    def _lifetimes_made_with(self) -> Lifetimes:
        path = self._image / _LIFETIMES_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=Lifetimes)
        except FileNotFoundError:
            return Lifetimes()
        except (OSError, msgspec.DecodeError) as error:
            raise SigningKeyError(f"{path}: cannot be read: {error}; restore the folder from a backup") from error

    def _old(self, role: Signed, lifetime_days: float) -> bool:
        return role.expires - self._now() < dt.timedelta(days=lifetime_days) / 2

    def _until(self, days: float) -> dt.datetime:
        return (self._now() + dt.timedelta(days=days)).replace(microsecond=0)


def _root_version(folder: Path) -> int:
    return max((int(path.name.split(".")[0]) for path in folder.glob("*.root.json")), default=0)
