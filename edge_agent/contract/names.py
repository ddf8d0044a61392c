"""What a fleet, a device, a model or a version may be called: safe in a topic, a path and a URL at once."""

from __future__ import annotations

import re

from edge_agent.contract.errors import ManifestError

NAME_PATTERN = "[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_NAME = re.compile(NAME_PATTERN)
_VERSION = re.compile(r"[0-9a-z](?:[0-9a-z._-]{0,61}[0-9a-z])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_name(text: str) -> bool:
    """Whether ``text`` may name a fleet, a device or a model: 1-63 of ``a-z 0-9 _ -``, ends alphanumeric."""
    return _NAME.fullmatch(text) is not None


def check_name(text: str, what: str) -> str:
    """``text`` itself.

    Raises:
        ManifestError: It is no name; ``what`` says whose.
    """
    if not is_name(text):
        raise ManifestError(
            f"{what} {text!r}: use 1 to 63 of a-z, 0-9, '-' and '_', beginning and ending with a letter or digit"
        )
    return text


def check_version(text: str) -> str:
    """``text`` itself: 1-63 of ``0-9 a-z . _ -``.

    Raises:
        ManifestError: It is no version.
    """
    if _VERSION.fullmatch(text) is None:
        raise ManifestError(f"version {text!r}: use 1 to 63 of 0-9, a-z, '.', '-' and '_'")
    return text


def check_digest(text: str, what: str) -> str:
    """``text`` itself: a SHA-256 in 64 lowercase hexadecimal digits.

    Raises:
        ManifestError: It is no digest; ``what`` says whose.
    """
    if _DIGEST.fullmatch(text) is None:
        raise ManifestError(f"{what}: {text!r} is no SHA-256 in lowercase hexadecimal")
    return text
