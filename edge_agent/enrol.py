"""Joining a fleet: a one-time claim token is exchanged for this device's identity."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from pathlib import Path

import msgspec

from edge_agent.contract.enrolment import Enrolment, EnrolmentRequest
from edge_agent.contract.errors import (
    ConfigurationError,
    DeviceError,
    NetworkError,
    ServerRefused,
    TrustError,
    storage_error,
)
from edge_agent.contract.names import is_name
from edge_agent.identity import IDENTITY_FILE, is_enrolled, keep_identity

_TIMEOUT_S = 30.0
_MAX_REPLY_BYTES = 1 << 20


class _Refusal(msgspec.Struct):
    error: str


def enrol(
    state: Path, server: str, request: EnrolmentRequest, *, image_root: Path | None, director_root: Path | None
) -> Enrolment:
    """Enrol this device and keep its identity in ``state``, readable by its owner alone.

    Args:
        server: Base URL of the fleet server.
        image_root, director_root: Trust anchors that came with the device; without them those that the server sends
            are trusted on first use.
    Raises:
        ConfigurationError: The device has an identity already, or a name or URL is wrong.
        TrustError: The server's trust anchor is not the one that came with the device.
        StorageFull, StorageNotWritable: The identity cannot be kept.
        NetworkError: The server cannot be reached, or refuses the claim.
    """
    if is_enrolled(state):
        raise ConfigurationError(
            f"{state / IDENTITY_FILE}: this device has enrolled already; remove the file to enrol anew"
        )
    if not is_name(request.device):
        raise ConfigurationError(f"device name {request.device!r}: use 1 to 63 of a-z, 0-9, '-' and '_'")
    if not server.startswith(("http://", "https://")):
        raise ConfigurationError(f"server {server!r}: begin it with http:// or https://")
    # Before the claim is spent.
    pinned = {path: _read_root(path) for path in (image_root, director_root) if path is not None}
    reply = _post(f"{server.rstrip('/')}/api/v1/enrol", msgspec.json.encode(request))
    try:
        enrolment = msgspec.json.decode(reply, type=Enrolment)
    except msgspec.DecodeError as error:
        raise NetworkError(f"{server}: answered the enrolment with something else: {error}") from error
    for what, path, sent in (
        ("image", image_root, enrolment.image_root),
        ("director", director_root, enrolment.director_root),
    ):
        if path is not None and pinned[path] != sent:
            raise TrustError(f"{server}: its {what} root is not the one in {path}; do not trust this server")
    identity = state / IDENTITY_FILE
    try:
        keep_identity(state, enrolment)
    except OSError as error:
        raise storage_error(error, str(identity)) or DeviceError(f"{identity}: {error.strerror}") from error
    return enrolment


def _read_root(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read as root metadata: {error}") from error


def _said(reply: bytes) -> str:
    """The ``error`` of a refusal of the fleet server's; the whole reply where something else answered."""
    try:
        return msgspec.json.decode(reply, type=_Refusal).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return reply.decode(errors="replace")


def _post(url: str, body: bytes) -> bytes:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})  # noqa: S310 - scheme checked by enrol
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:  # noqa: S310
            return bytes(reply.read(_MAX_REPLY_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            raise ServerRefused(url, status=error.code, detail=_said(error.read(2000))) from error
    except (OSError, http.client.HTTPException) as error:  # the latter: what answers there speaks no HTTP
        raise NetworkError(f"{url}: {getattr(error, 'reason', error)}; is the server running and reachable?") from error
