"""An approver's private key, read where the approver is: never on the fleet server."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from edge_agent.contract.errors import ConfigurationError


def read_key(path: Path, passphrase: Callable[[], str]) -> CryptoSigner:
    """The key in a PEM file.

    Args:
        passphrase: Asked where the key is encrypted.
    Raises:
        ConfigurationError: It is not there, others may read it, or the passphrase is another.
    """
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigurationError(f"{path}: others than its owner may read it; chmod 600 {path}")
        data = path.read_bytes()
        if b"PRIVATE KEY-----" not in data:
            raise ConfigurationError(f"{path}: holds no private key (PEM); give your key's file with --key")
        secret = passphrase().encode() if b"ENCRYPTED" in data else None
        return CryptoSigner(load_pem_private_key(data, secret))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; give your key's file with --key") from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path}: {error}; is that the key, and its passphrase?") from error


def is_encrypted(path: Path) -> bool:
    """Whether the key in a PEM file has a passphrase."""
    return b"ENCRYPTED" in path.read_bytes()
