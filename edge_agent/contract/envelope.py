"""The envelope of every numbered message, and how messages become bytes (msgpack) and back.

MQTT 3.1.1 has no properties, so what MQTT 5 would carry there stands in the envelope. A body travels as raw msgpack:
a relay never takes it apart. Fields that this code does not know survive: nested ones are ignored, those of the
envelope and of a body's top level are kept in ``unknown`` and written again.
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import msgspec

from edge_agent.contract.errors import MessageError, UnknownSchemaVersion
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
        previous: Sequence of the message before this one in the stream; what lies between was dropped by the
            device at its limit. The server takes the message if ``previous <= watermark < sequence``.
        sent_at_ms: Unix time of the device's clock when the message was made.
        body: msgpack of one of the bodies in :mod:`edge_agent.contract.messages`, by ``stream``.
    """

    fleet: str
    device: str
    epoch: str
    stream: Stream
    sequence: int
    previous: int
    sent_at_ms: int
    body: msgspec.Raw


M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """The message in msgpack, unknown fields included."""
    fields = {name: getattr(message, name) for name in message.__struct_fields__ if name != "unknown"}
    return msgspec.msgpack.encode({**message.unknown, **fields})


def decode(data: bytes, kind: type[M]) -> M:
    """The message of type ``kind`` in ``data``.

    Raises:
        UnknownSchemaVersion: Its major version is not ours.
        MessageError: It is no such message.
    """
    try:
        fields = _fields.decode(data)
        found = msgspec.msgpack.decode(fields["schema"], type=str) if "schema" in fields else SCHEMA
        if found.partition(".")[0] != SCHEMA.partition(".")[0]:
            raise UnknownSchemaVersion(
                f"{kind.__name__}: schema {found} is not known here; this code reads {SCHEMA}: update it"
            )
        message: M = _decoder(kind).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MessageError(f"{kind.__name__}: {error}") from error
    unknown = fields.keys() - set(kind.__struct_fields__)
    if unknown:
        kept = {name: msgspec.msgpack.decode(fields[name]) for name in sorted(unknown)}
        message = msgspec.structs.replace(message, unknown=kept)
    return message


_fields: msgspec.msgpack.Decoder[dict[str, msgspec.Raw]] = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])


@functools.lru_cache(maxsize=64)
def _decoder(kind: type[M]) -> msgspec.msgpack.Decoder[M]:
    return msgspec.msgpack.Decoder(kind)
