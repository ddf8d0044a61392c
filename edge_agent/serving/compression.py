"""Compressed bodies of requests and answers: ``gzip`` and ``deflate``, which is the zlib form (RFC 9110, 8.4.1)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Final

from edge_agent.contract.errors import CallerError, MalformedRequest

Buffer = bytes | bytearray | memoryview

SMALLEST_BYTES: Final = 1024
_WINDOW: Final[Mapping[str, int]] = {"gzip": 31, "deflate": 15}
_ALIASES: Final[Mapping[str, str]] = {"x-gzip": "gzip"}
_KNOWN: Final = ", ".join(_WINDOW)
_PIECE_BYTES: Final = 64 * 1024
# Tensors of floats hardly get smaller with more effort.
_LEVEL: Final = 1


class UnknownEncoding(MalformedRequest):
    """The body is packed in a way that is not known here."""

    http_status = 415
    http_headers = ((b"accept-encoding", _KNOWN.encode()),)


class UnpackedTooLarge(CallerError):
    """The body would be longer than this device takes, once it is unpacked."""

    http_status = 413


def request_encoding(value: bytes | None) -> str | None:
    """The coding that a ``Content-Encoding`` names; None where the body is as it is.

    Raises:
        UnknownEncoding: It is none of ours, or there are several on top of each other.
    """
    named = (value or b"").decode("latin-1").strip().lower()
    if named in {"", "identity"}:
        return None
    named = _ALIASES.get(named, named)
    if named not in _WINDOW:
        raise UnknownEncoding(f"Content-Encoding {named!r:.40} is not known here; send one of: {_KNOWN}, identity")
    return named


def unpack(body: Buffer, encoding: str, *, limit_bytes: int) -> bytearray:
    """The body as it was before it was packed.

    Args:
        limit_bytes: Longest that it may get; no more memory than that is spent on it.
    Raises:
        UnpackedTooLarge: It would get longer.
        MalformedRequest: It is damaged, truncated, or something follows it.
    """
    machine = zlib.decompressobj(wbits=_WINDOW[encoding])
    view = memoryview(body)
    out = bytearray()
    at = 0
    try:
        while at < len(view) and not machine.eof:
            piece: Buffer = view[at : at + _PIECE_BYTES]
            at += len(piece)
            while piece and not machine.eof:
                out += machine.decompress(piece, min(_PIECE_BYTES, limit_bytes - len(out) + 1))
                piece = machine.unconsumed_tail
                if len(out) > limit_bytes:
                    raise UnpackedTooLarge(
                        f"the body takes more than {limit_bytes} bytes once it is unpacked, the limit (max_body_mib "
                        "under [api] in the agent's settings)"
                    )
    except zlib.error as error:
        hint = "; deflate is the zlib form (RFC 1950)" if encoding == "deflate" and at <= _PIECE_BYTES else ""
        raise MalformedRequest(f"the body is no {encoding}: {error}{hint}") from error
    if not machine.eof:
        raise MalformedRequest(f"the {encoding} body ends too early: truncated?")
    left = len(machine.unused_data) + len(view) - at
    if left:
        raise MalformedRequest(f"{left} bytes follow the end of the {encoding} body; send it in one member")
    return out


def answer_encoding(accepted: bytes | None) -> str | None:
    """The coding that an ``Accept-Encoding`` likes best (RFC 9110, 12.5.3); None for none.

    What it rates alike is taken in the order gzip, deflate; none at all is better than one that it rates lower.
    """
    if not accepted:
        return None
    weights: dict[str, float] = {}
    for part in accepted.decode("latin-1").lower().split(","):
        coding, _, parameters = part.partition(";")
        coding = coding.strip()
        weights[_ALIASES.get(coding, coding)] = _weight(parameters)
    rated = {coding: weights.get(coding, weights.get("*", 0.0)) for coding in _WINDOW}
    best = max(rated, key=lambda coding: rated[coding])
    return best if rated[best] > 0.0 and rated[best] >= weights.get("identity", 0.0) else None


def pack(parts: Iterable[Buffer], encoding: str) -> list[bytes]:
    """The pieces of a body, packed as one."""
    machine = zlib.compressobj(level=_LEVEL, wbits=_WINDOW[encoding])
    out = [machine.compress(part) for part in parts]
    out.append(machine.flush())
    return [piece for piece in out if piece]


def _weight(parameters: str) -> float:
    """The ``q`` of a coding: 1 where it is not given, 0 where it is no number between 0 and 1."""
    name, _, value = parameters.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        weight = float(value)
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0
