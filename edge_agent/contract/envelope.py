"""The envelope of every numbered message, and how messages become bytes (msgpack) and back.

MQTT 3.1.1 has no properties, so what MQTT 5 would carry there stands in the envelope. A body travels as raw msgpack:
a relay never takes it apart. Fields that this code does not know survive: nested ones are ignored, those of the
envelope and of a body's top level are kept in ``unknown`` and written again.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from edge_agent.contract.errors import MessageError, ShoalError, UnknownSchemaVersion
from edge_agent.contract.quantities import Count, Identifier, Name, TimeMs
from edge_agent.contract.topics import Stream

SCHEMA = "1.0"
MAX_PAYLOAD_BYTES = 128 * 1024  # the smallest limit among common brokers


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What all messages have.

    Args:
        schema: ``major.minor``; an unknown major is refused, an unknown minor only brings fields we do not know.
        unknown: Fields that this code does not know, written again on encoding.
    """

    schema: str = SCHEMA
    unknown: dict[str, Any] = msgspec.field(default_factory=dict)


class Envelope(Message, frozen=True, kw_only=True):
    """One message of a stream.

    Args:
        epoch: Identifier of the device's outbox; a new outbox (a wiped disk) begins a new epoch at sequence 1.
        sequence: Position in the stream, from 1, increasing.
        previous: Sequence of the message before this one that the device still holds, 0 if it holds none; what lies
            between is acknowledged, or was dropped at the device's limit. The server takes the message if
            ``previous <= watermark < sequence``.
        sent_at_ms: Unix time of the device's clock when the message was made.
        body: msgpack of one of the bodies in :mod:`edge_agent.contract.messages`, by ``stream``.
    """

    fleet: Name
    device: Name
    epoch: Identifier
    stream: Stream
    sequence: Count
    previous: Count
    sent_at_ms: TimeMs
    body: msgspec.Raw

    def __post_init__(self) -> None:
        if not 0 <= self.previous < self.sequence:
            raise MessageError(f"sequence {self.sequence} does not come after previous {self.previous}")
        if not memoryview(self.body):
            raise MessageError("the body is empty: it needs one msgpack value")


M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """The message in msgpack, unknown fields included; a field that we know goes before an unknown one of its name."""
    fields = {name: getattr(message, name) for name in message.__struct_fields__ if name != "unknown"}
    return msgspec.msgpack.encode({**message.unknown, **fields})


def decode(data: bytes, kind: type[M]) -> M:
    """The message of type ``kind`` in ``data``; one without a schema counts as this code's own.

    Raises:
        UnknownSchemaVersion: Its major version is not ours.
        MessageError: It is no such message.
    """
    try:
        # First every value is skipped over unread: lengths that lie are found before anything is allocated for them.
        fields = _fields.decode(data)
        _check_schema(fields, kind)
        foreign = sorted(fields.keys() - _known(kind))
        unknown = {name: msgspec.msgpack.decode(fields[name]) for name in foreign}
        if "unknown" in fields:  # a sender's field of that name is one that we do not know, never our container
            del fields["unknown"]
            data = msgspec.msgpack.encode(fields)
        message: M = _decoder(kind).decode(data)
    except UnknownSchemaVersion:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, ShoalError) as error:
        # TypeError: older msgspec's word for a map key that is a map itself.
        raise MessageError(f"{kind.__name__}: {error}") from error
    return msgspec.structs.replace(message, unknown=unknown) if unknown else message


def _check_schema(fields: Mapping[str, msgspec.Raw], kind: type[Message]) -> None:
    if "schema" not in fields:
        return
    found = msgspec.msgpack.decode(fields["schema"], type=str)
    if found.partition(".")[0] != SCHEMA.partition(".")[0]:
        raise UnknownSchemaVersion(
            f"{kind.__name__}: schema {found!r:.40} is not known here; this code reads {SCHEMA}: update it"
        )
    if _SCHEMA.fullmatch(found) is None:
        raise MessageError(f"schema {found!r:.40} is not MAJOR.MINOR")


_SCHEMA = re.compile("[0-9]{1,4}\\.[0-9]{1,9}")
_fields: msgspec.msgpack.Decoder[dict[str, msgspec.Raw]] = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])


@functools.lru_cache(maxsize=64)
def _decoder(kind: type[M]) -> msgspec.msgpack.Decoder[M]:
    return msgspec.msgpack.Decoder(kind)


@functools.lru_cache(maxsize=64)
def _known(kind: type[Message]) -> frozenset[str]:
    return frozenset(kind.__struct_fields__) - {"unknown"}
