"""What is signed, as files: the image repository and the director's roots in the key folder."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TypeVar

import msgspec
from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from edge_agent.durable import write_durably
from trainer.publish.errors import SigningKeyError

IMAGE, DIRECTOR_REPOSITORY = "image", "director"
# Who a key belongs to, beside the key in signed metadata (TUF keeps members that it does not know).
_NAME = "x-shoal-name"
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


class MetadataFolder:
    """Reads and writes signed metadata. What ``timestamp.json`` leads to is what counts.

    Args:
        folder: The key folder: ``image/`` and ``director/`` lie in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def root_version(self, repository: str) -> int:
        """The version of the newest root; 0 where there is none."""
        found = (self.folder / repository).glob("*.root.json")
        return max((int(path.name.split(".")[0]) for path in found), default=0)

    def root(self, repository: str) -> Root:
        """The newest root of ``image`` or ``director``."""
        return self.read(Root, f"{repository}/{self.root_version(repository)}.root.json")

    def timestamp(self) -> Timestamp | None:
        """The timestamp signed last."""
        name = f"{IMAGE}/timestamp.json"
        return self.read(Timestamp, name) if (self.folder / name).exists() else None

    def roles(self) -> dict[str, Targets]:
        """Targets and each model's role as they were signed last, hash bins too.

        Raises:
            SigningKeyError: Nothing was signed yet.
        """
        snapshot = self.snapshot()
        names = sorted(snapshot.meta, key=lambda file: (file != "targets.json", file))
        return {
            file.removesuffix(".json"): self.read(Targets, f"{IMAGE}/{snapshot.meta[file].version}.{file}")
            for file in names
        }

    def snapshot(self) -> Snapshot:
        """The snapshot that the timestamp names.

        Raises:
            SigningKeyError: Nothing was signed yet.
        """
        timestamp = self.timestamp()
        if timestamp is None:
            raise SigningKeyError(f"{self.folder / IMAGE}: nothing was signed yet; begin with `shoal keys init`")
        return self.read(Snapshot, f"{IMAGE}/{timestamp.snapshot_meta.version}.snapshot.json")

    def meta(self, role: str, version: int) -> MetaFile:
        """What a snapshot says of a role's file."""
        return MetaFile.from_data(version, self.data(f"{IMAGE}/{version}.{role}.json"), ["sha256"])

    def read(self, kind: type[_R], name: str) -> _R:
        """A file's role.

        Raises:
            SigningKeyError: It is missing or damaged.
        """
        try:
            signed = Metadata.from_bytes(self.data(name)).signed
        except RepositoryError as error:
            raise SigningKeyError(
                f"{self.folder / name}: cannot be read: {error}; restore the folder from a backup"
            ) from error
        if not isinstance(signed, kind):
            raise SigningKeyError(f"{self.folder / name}: holds {signed.type}; restore the folder from a backup")
        return signed

    def data(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            SigningKeyError: It cannot be read.
        """
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise SigningKeyError(
                f"{self.folder / name}: cannot be read: {error}; restore the folder from a backup"
            ) from error

    def write(self, name: str, data: bytes) -> None:
        """Replace a file.

        Raises:
            SigningKeyError: The disk refuses.
        """
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, data)
        except OSError as error:
            raise SigningKeyError(f"{path}: {error.strerror}; nothing further was signed") from error

    def lifetimes(self) -> Lifetimes:
        """Those that the keys were made with.

        Raises:
            SigningKeyError: The file is damaged.
        """
        name = f"{IMAGE}/{_LIFETIMES_FILE}"
        if not (self.folder / name).exists():
            return Lifetimes()
        try:
            return msgspec.json.decode(self.data(name), type=Lifetimes)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SigningKeyError(
                f"{self.folder / name}: cannot be read: {error}; restore the folder from a backup"
            ) from error

    def keep_lifetimes(self, lifetimes: Lifetimes) -> None:
        """Let all that is signed later have these."""
        self.write(f"{IMAGE}/{_LIFETIMES_FILE}", msgspec.json.encode(lifetimes))


def named(key: Key, name: str) -> Key:
    """The public key with the name under which people speak of it."""
    key.unrecognized_fields[_NAME] = name
    return key


def name_of(key: Key, otherwise: str) -> str:
    """The name of a public key; ``otherwise`` where its metadata is older than names are."""
    found = key.unrecognized_fields.get(_NAME)
    return found if isinstance(found, str) and found else otherwise


def until(now: dt.datetime, days: float) -> dt.datetime:
    """When something signed now expires, in whole seconds as TUF has it."""
    return (now + dt.timedelta(days=days)).replace(microsecond=0)
