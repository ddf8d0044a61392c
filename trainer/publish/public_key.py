"""Public keys: in a file, for keys that are made where they stay; and whether one is what its identifier says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Key, SSlibKey

from edge_agent.durable import write_durably
from trainer.publish.errors import SigningKeyError

SUFFIX = ".pub"


def write_public(path: Path, key: Key) -> None:
    """Write the public part of a key as JSON."""
    write_durably(path, msgspec.json.format(msgspec.json.encode({"keyid": key.keyid, **key.to_dict()}), indent=1))


def read_public(path: Path) -> Key:
    """The public key in a file that ``shoal keys make`` has written.

    Raises:
        SigningKeyError: There is none.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
        key = SSlibKey.from_dict(str(found.pop("keyid")), found)
    except OSError as error:
        raise SigningKeyError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise SigningKeyError(f"{path}: holds no public key ({error}); `shoal keys make` writes one") from error
    if not is_itself(key):
        raise SigningKeyError(f"{path}: its keyid is that of another key; do not take it")
    return key


def is_itself(key: Key) -> bool:
    """Whether a key's identifier is the SHA-256 of the key, as those of all our keys are.

    TUF lets an identifier stand for any key (4.2). One that stood for another key from one version to the next would
    take its place without any role naming a new one.
    """
    said = {"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval}
    return key.keyid == hashlib.sha256(str(encode_canonical(said)).encode()).hexdigest()
