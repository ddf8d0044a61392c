"""Joining a fleet: a one-time claim token is exchanged for this device's identity."""

from __future__ import annotations

import hashlib
import http.client
import logging
import urllib.error
import urllib.request
from pathlib import Path

import msgspec

from edge_agent.contract.enrolment import Enrolment, EnrolmentRequest, EnrolmentRoots
from edge_agent.contract.errors import (
    ConfigurationError,
    DeviceError,
    NetworkError,
    ServerRefused,
    TrustError,
    storage_error,
)
from edge_agent.contract.names import is_name
from edge_agent.identity import COPY_FILE, IDENTITY_FILE, identity_to_serve_with, keep_identity

_log = logging.getLogger(__name__)
_TIMEOUT_S = 30.0
_MAX_REPLY_BYTES = 1 << 20
_NOT_KNOWN_THERE = frozenset({404, 405})
_ASK_LATER = frozenset({408, 429})


class EnrolmentRefused(ServerRefused):
    """The server is there and says no: the same claim and name would be refused again."""

    exit_code = 7  # as `shoal` ends where the server refuses


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
        EnrolmentRefused: The server refuses the claim or the name.
        NetworkError: The server cannot be reached, or fails.
    """
    before, damage = identity_to_serve_with(state)
    if before is not None:
        raise ConfigurationError(
            f"{state / IDENTITY_FILE}: this device has enrolled already; to enrol anew, remove it and {COPY_FILE}"
        )
    if not is_name(request.device):
        raise ConfigurationError(f"device name {request.device!r}: use 1 to 63 of a-z, 0-9, '-' and '_'")
    if not server.startswith(("http://", "https://")):
        raise ConfigurationError(f"server {server!r}: begin it with http:// or https://")
    pins = _Pins(server, image_root, director_root)
    pins.check_before_claiming()
    reply = _send(f"{server.rstrip('/')}/api/v1/enrol", msgspec.json.encode(request))
    try:
        enrolment = msgspec.json.decode(reply, type=Enrolment)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NetworkError(f"{server}: answered the enrolment with something else: {error}") from error
    pins.check(enrolment, claim="the claim is spent")
    identity = state / IDENTITY_FILE
    try:
        keep_identity(state, enrolment)
    except OSError as error:
        raise storage_error(error, str(identity)) or DeviceError(f"{identity}: {error.strerror}") from error
    if damage:
        _log.warning("%s was damaged; the new identity has taken its place", identity)
    return enrolment


class _Pins:
    """The roots that came with the device, and whether a server's are the same.

    Raises:
        ConfigurationError: One cannot be read.
    """

    def __init__(self, server: str, image: Path | None, director: Path | None) -> None:
        self._server = server
        self._image = (image, _read_root(image)) if image is not None else None
        self._director = (director, _read_root(director)) if director is not None else None

    def check_before_claiming(self) -> None:
        """Ask the server for its roots, and send it no claim where they are others.

        Raises:
            TrustError: They are.
            NetworkError: The server cannot be reached, or answers with something else.
        """
        if self._image is None and self._director is None:
            return
        try:
            reply = _send(f"{self._server.rstrip('/')}/api/v1/enrol/roots")
        except ServerRefused as error:
            if error.status in _NOT_KNOWN_THERE:
                return  # an older server's: what the claim brings is held against the pins then
            raise
        try:
            roots = msgspec.json.decode(reply, type=EnrolmentRoots)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NetworkError(f"{self._server}: gives no roots, but something else: {error}") from error
        self.check(roots, claim="the claim was not sent, and can still be used")

    def check(self, sent: Enrolment | EnrolmentRoots, *, claim: str) -> None:
        """See that a server's roots are those that came with the device.

        Args:
            claim: What has become of the claim token, for whoever reads the error.
        Raises:
            TrustError: They are not.
        """
        for what, pin, root in (
            ("image", self._image, sent.image_root),
            ("director", self._director, sent.director_root),
        ):
            if pin is not None and pin[1] != root:
                raise TrustError(
                    f"{self._server}: its {what} root ({_digest(root)}) is not the one in {pin[0]} "
                    f"({_digest(pin[1])}); {claim}. Give the address of your own fleet's server, or that fleet's "
                    f"newest {what}/N.root.json as --{what}-root; if both are right, do not trust this server"
                )


def _digest(root: str) -> str:
    return f"sha256 {hashlib.sha256(root.encode()).hexdigest()[:12]}"


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


def _send(url: str, body: bytes | None = None) -> bytes:
    """What ``GET`` answers, or with a body ``POST``."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})  # noqa: S310 - scheme checked by enrol
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:  # noqa: S310
            return bytes(reply.read(_MAX_REPLY_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            is_final = 400 <= error.code < 500 and error.code not in _ASK_LATER
            kind = EnrolmentRefused if is_final else ServerRefused
            raise kind(url, status=error.code, detail=_said(error.read(2000))) from error
    except (OSError, http.client.HTTPException) as error:  # the latter: what answers there speaks no HTTP
        raise NetworkError(f"{url}: {getattr(error, 'reason', error)}; is the server running and reachable?") from error
