"""The signing keys of a fleet, in one folder whose parts are meant to be taken apart.

::

    offline/     image-root.pem image-targets.pem director-root.pem    a safe; needed to add a model and once a year
    publisher/   MODEL.pem ... snapshot.pem timestamp.pem              beside the trainer
    server/      director.pem                                          on the fleet server
    image/       1.root.json ... timestamp.json                        public: the image repository as signed last
    director/    1.root.json                                           public: the director's root
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
import stat
from collections.abc import Iterator
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
_TOP_LEVEL_ROLES = frozenset({"root", "targets", "snapshot", "timestamp"})


def model_key(model: str) -> str:
    """The name of the key that signs a model's packages.

    Raises:
        SigningKeyError: The model has the name of one of TUF's own roles.
        ManifestError: It is no model name.
    """
    if check_name(model, "model") in _TOP_LEVEL_ROLES:
        raise SigningKeyError(f"a model cannot be called {model!r}: TUF has a role of that name; choose another")
    return f"publisher/{model}"


class KeyFolder:
    """Private keys as PEM files with mode 0600.

    Args:
        passphrase: Encrypts keys that are made, decrypts those that are read; None for keys in the clear.
    """

    def __init__(self, folder: Path, *, passphrase: str | None = None) -> None:
        self.folder = folder
        self._passphrase = passphrase.encode() if passphrase else None

    @classmethod
    def from_environment(cls, folder: Path) -> KeyFolder:
        """The folder, its passphrase taken from ``SHOAL_KEYS_PASSPHRASE`` where that is set."""
        return cls(folder, passphrase=os.environ.get(PASSPHRASE_VARIABLE) or None)

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
        path = self.path(name)
        if path.exists():
            raise SigningKeyError(f"{path}: there is a key already; keep it, or choose another folder")
        signer = CryptoSigner.generate_ed25519() if kind == "ed25519" else CryptoSigner.generate_ecdsa()
        key = load_pem_private_key(signer.private_bytes, None)
        encryption: KeySerializationEncryption = (
            BestAvailableEncryption(self._passphrase) if self._passphrase else NoEncryption()
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durably(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption), mode=0o600)
        except OSError as error:
            raise SigningKeyError(f"{path}: {error.strerror}; choose a folder that you may write") from error
        return signer

    def signer(self, name: str) -> CryptoSigner:
        """The key to sign with.

        Raises:
            SigningKeyError: It is not here, others may read it, or the passphrase is wrong.
        """
        path = self.path(name)
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise SigningKeyError(f"{path}: others than its owner may read it; chmod 600 {path}")
            key: PrivateKeyTypes = load_pem_private_key(path.read_bytes(), self._passphrase)
            return CryptoSigner(key)
        except FileNotFoundError as error:
            hint = "bring it from where it is kept" if name.startswith("offline/") else "see `shoal keys --help`"
            raise SigningKeyError(f"{path}: the key is not here; {hint}") from error
        except OSError as error:
            raise SigningKeyError(f"{path}: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise SigningKeyError(f"{path}: {error}; is {PASSPHRASE_VARIABLE} what it was made with?") from error

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
        found = (path.relative_to(self.folder).with_suffix("") for path in self.folder.glob("*/*.pem"))
        return sorted(str(path) for path in found)


def utc_now() -> dt.datetime:
    """The time in UTC, in whole seconds as TUF has it."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0)
