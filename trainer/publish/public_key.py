"""A public key in a file, for keys that are made where they stay: only this part of them travels."""

from __future__ import annotations

from pathlib import Path

import msgspec
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
        return SSlibKey.from_dict(str(found.pop("keyid")), found)
    except OSError as error:
        raise SigningKeyError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise SigningKeyError(f"{path}: holds no public key ({error}); `shoal keys make` writes one") from error
