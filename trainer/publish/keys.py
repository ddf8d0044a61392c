"""The signing keys of a fleet, in one folder whose parts are meant to be taken apart.

::

    offline/       image-root.pem image-targets.pem director-root.pem    a safe; needed to add a model and once a year
    offline/ANNA/  the same three, where several persons share the power  goes to that person
    approvers/BEN/ approver.pem root.json                                 goes to that person
    publisher/     MODEL.pem ... snapshot.pem timestamp.pem               beside the trainer
    server/        director.pem                                           on the fleet server
    image/         1.root.json ... timestamp.json                         public: the image repository as signed last
    director/      1.root.json                                            public: the director's root
    pending.json   a change that still lacks signatures (public), pending-keys/ the new private keys that it brings
    waiting/       releases that still lack an approver's signature (public)
    retired/       private keys that were replaced: destroy them
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from edge_agent.contract.names import check_name
from edge_agent.durable import write_durably
from trainer.publish.errors import SigningKeyError

PASSPHRASE_VARIABLE = "SHOAL_KEYS_PASSPHRASE"  # noqa: S105 - the name of a variable
IMAGE_ROOT, IMAGE_TARGETS, DIRECTOR_ROOT = "offline/image-root", "offline/image-targets", "offline/director-root"
SNAPSHOT, TIMESTAMP, DIRECTOR = "publisher/snapshot", "publisher/timestamp", "server/director"
PENDING_KEYS, RETIRED = "pending-keys", "retired"
# Whose keys belong to one person, who may keep them under a passphrase of their own.
_PERSONS = ("offline/", "approvers/")
_KEY_FOLDERS = ("offline", "approvers", "publisher", "server")
_TOP_LEVEL_ROLES = frozenset({"root", "targets", "snapshot", "timestamp"})
_BINS = "-bins-"

# What a key's passphrase is, by the key's name; the flag says that the key is being made: "" leaves it to the others.
Ask = Callable[[str, bool], str]


def model_key(model: str) -> str:
    """The name of the key that signs a model's packages.

    Raises:
        SigningKeyError: The model has the name of one of TUF's own roles.
        ManifestError: It is no model name.
    """
    if check_name(model, "model") in _TOP_LEVEL_ROLES or model in {"director", "director-root"} or _BINS in model:
        raise SigningKeyError(f"a model cannot be called {model!r}: TUF has a role of that name; choose another")
    return f"publisher/{model}"


def approver_key(person: str) -> str:
    """The name of the key with which a person approves releases.

    Raises:
        ManifestError: It is no name.
    """
    return f"approvers/{check_name(person, 'approver')}/approver"


def offline_key(name: str, person: str) -> str:
    """The name of a person's part of an offline key: ``offline/anna/image-root``; without a person, the key itself."""
    folder, _, key = name.partition("/")
    return f"{folder}/{check_name(person, 'person')}/{key}" if person else name


class KeyFolder:
    """Private keys as PEM files with mode 0600.

    Args:
        passphrase: Encrypts keys that are made, decrypts those that are read; None for keys in the clear.
        ask: Gives the passphrases of persons' keys instead; a key that ``passphrase`` does not open is asked for too.
    """

    def __init__(self, folder: Path, *, passphrase: str | None = None, ask: Ask | None = None) -> None:
        self.folder = folder
        self._passphrase, self._ask = passphrase, ask

    @classmethod
    def from_environment(cls, folder: Path, *, ask: Ask | None = None) -> KeyFolder:
        """The folder, its passphrase taken from ``SHOAL_KEYS_PASSPHRASE`` where that is set."""
        return cls(folder, passphrase=os.environ.get(PASSPHRASE_VARIABLE) or None, ask=ask)

    def path(self, name: str) -> Path:
        """The file of a key: ``offline/image-root`` is ``offline/image-root.pem``."""
        return self.folder / f"{name}.pem"

    def make(self, name: str, *, kind: str = "ed25519") -> CryptoSigner:
        """Make a key.

        Args:
            kind: ``ed25519`` or ``ecdsa`` (P-256).
        Raises:
            SigningKeyError: There is one of that name already, or the folder cannot be written.
        """
        signer = generate(kind)
        self.store(name, signer)
        return signer

    def store(self, name: str, signer: CryptoSigner, *, folder: str = "") -> None:
        """Keep a private key.

        Args:
            folder: Within this one, to keep it apart: ``pending-keys``.
        Raises:
            SigningKeyError: There is one of that name already, or the folder cannot be written.
        """
        path = self.path(f"{folder}/{name}" if folder else name)
        if path.exists():
            raise SigningKeyError(f"{path}: there is a key already; keep it, or choose another folder")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durably(path, encoded(signer, self._new_passphrase(name)), mode=0o600)
        except OSError as error:
            raise SigningKeyError(f"{path}: {error.strerror}; choose a folder that you may write") from error

    def signer(self, name: str) -> CryptoSigner:
        """The key to sign with.

        Raises:
            SigningKeyError: It is not here, others may read it, or the passphrase is wrong.
        """
        return self.read(self.path(name), name)

    def read(self, path: Path, name: str) -> CryptoSigner:
        """A key from any file.

        Args:
            name: What it is called where its passphrase is asked for.
        Raises:
            SigningKeyError: As :meth:`signer`.
        """
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise SigningKeyError(f"{path}: others than its owner may read it; chmod 600 {path}")
            data = path.read_bytes()
        except FileNotFoundError as error:
            hint = "bring it from where it is kept" if name.startswith(_PERSONS) else "see `shoal keys --help`"
            raise SigningKeyError(f"{path}: the key is not here; {hint}") from error
        except OSError as error:
            raise SigningKeyError(f"{path}: {error.strerror}") from error
        if b"PRIVATE KEY-----" not in data:
            raise SigningKeyError(f"{path}: holds no private key (PEM); give the file of one")
        try:
            return _opened(data, self._passphrase)
        except (ValueError, TypeError) as error:
            if b"ENCRYPTED" not in data:
                raise SigningKeyError(f"{path}: {error}; restore the file from a backup") from error
            if self._ask is None and self._passphrase is None:
                raise SigningKeyError(
                    f"{path}: is encrypted, and nobody is here to type its passphrase; give --passphrase-file, where "
                    f"the command has it, or set {PASSPHRASE_VARIABLE}"
                ) from error
            if self._ask is None:
                raise SigningKeyError(f"{path}: {error}; is {PASSPHRASE_VARIABLE} what it was made with?") from error
        try:
            return _opened(data, self._ask(name, False))
        except (ValueError, TypeError) as error:
            raise SigningKeyError(f"{path}: {error}; the passphrase is another") from error

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else signs meanwhile: two at once would sign two different metadata of one version.

        Raises:
            SigningKeyError: The folder is not there, or cannot be written.
        """
        try:
            file = (self.folder / ".signing").open("w")
        except OSError as error:
            raise SigningKeyError(f"{self.folder}: {error.strerror}; begin with `shoal keys init`") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def names(self) -> list[str]:
        """The keys that are here."""
        found = (path for name in _KEY_FOLDERS for path in (self.folder / name).rglob("*.pem"))
        return sorted(str(path.relative_to(self.folder).with_suffix("")) for path in found)

    def unencrypted(self) -> list[str]:
        """Keys of persons that lie here without a passphrase, those of a change that waits too."""
        places = (self.folder / part / name for part in ("", PENDING_KEYS) for name in _PERSONS)
        found = (path for place in places for path in place.glob("*/*.pem") if not is_encrypted(path))
        return sorted(str(path.relative_to(self.folder).with_suffix("")) for path in found)

    def _new_passphrase(self, name: str) -> str | None:
        if self._ask is not None and name.startswith(_PERSONS):
            return self._ask(name, True) or self._passphrase
        return self._passphrase


def generate(kind: str = "ed25519") -> CryptoSigner:
    """A new private key: ``ed25519`` or ``ecdsa`` (P-256)."""
    return CryptoSigner.generate_ed25519() if kind == "ed25519" else CryptoSigner.generate_ecdsa()


def encoded(signer: CryptoSigner, passphrase: str | None) -> bytes:
    """A private key as PEM, encrypted where there is a passphrase."""
    key = load_pem_private_key(signer.private_bytes, None)
    encryption: KeySerializationEncryption = (
        BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def is_encrypted(path: Path) -> bool:
    """Whether the private key in a file has a passphrase."""
    return b"ENCRYPTED" in path.read_bytes()


def _opened(data: bytes, passphrase: str | None) -> CryptoSigner:
    # A key in the clear is read as it is: in one folder some keys may have a passphrase and some none.
    secret = passphrase.encode() if passphrase and b"ENCRYPTED" in data else None
    key: PrivateKeyTypes = load_pem_private_key(data, secret)
    return CryptoSigner(key)


def utc_now() -> dt.datetime:
    """The time in UTC, in whole seconds as TUF has it."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0)
