"""What is wrong with a settings file, in words: which keys and values could stand there, and which one was meant."""

from __future__ import annotations

import difflib
import re

import msgspec
import msgspec.inspect

_UNKNOWN = re.compile(r"unknown field `(.*?)`")
_PLACE = re.compile(r" - at `\$\.?([^`]*)`\Z")
# Two letters changed places in a word of four: 0.75; "prot" and "report": 0.6.
_ALIKE = 0.7
_STEP = re.compile(r"([A-Za-z_]\w*)|\[")
# Of values that must look a certain way, what a pattern or a type does not tell a person.
_FORMS = {
    "token_sha256": "must be the SHA-256 of the token, 64 digits: the first word of `printf %s TOKEN | sha256sum`",
    "socket_mode": 'must be permissions in octal, in quotes, such as "660"',
    "uid": "must be a user's number, such as 1000, without quotes: `id -u NAME` tells it",
    "gid": "must be a group's number, such as 1000, without quotes: `getent group NAME` tells it",
    "name": "must be 1 to 63 of a-z, 0-9, - and _, beginning and ending with a letter or digit",
}


def explained(error: msgspec.ValidationError, settings: type[msgspec.Struct]) -> str:
    """The error, with what to write instead where that is known.

    Args:
        settings: What was read.
    """
    text = str(error)
    found = _PLACE.search(text)
    place = found[1] if found is not None else ""
    key = place.rpartition(".")[2]
    unknown = _UNKNOWN.search(text)
    if unknown is not None:
        return _unknown_key(unknown[1], place, settings)
    if text.startswith("Expected") and key in _FORMS:
        return f"$.{place}: {_FORMS[key]}"
    if "enum value" in text:
        kind = _kind_at(place, settings)
        if isinstance(kind, msgspec.inspect.LiteralType):
            return f"{text}: it takes {', '.join(map(repr, kind.values))}"
    return text


def _unknown_key(key: str, place: str, settings: type[msgspec.Struct]) -> str:
    where = f"$.{place}" if place else "the top of the file"
    said = f"no such key at {where}: {key}"
    kind = _kind_at(place, settings)
    if not isinstance(kind, msgspec.inspect.StructType):
        return said
    known = [field.encode_name for field in kind.fields]
    likely = difflib.get_close_matches(key, known, n=1, cutoff=_ALIKE) or [one for one in known if key in one]
    return f"{said}; did you mean {likely[0]}?" if likely else f"{said}; there may be: {', '.join(known)}"


def _kind_at(place: str, settings: type[msgspec.Struct]) -> msgspec.inspect.Type | None:
    """What may stand at a place such as ``api.apps[0]``; None where the settings have no such place."""
    kind: msgspec.inspect.Type | None = msgspec.inspect.type_info(settings)
    for name in _STEP.findall(place):
        if name and isinstance(kind, msgspec.inspect.StructType):
            kind = next((field.type for field in kind.fields if field.encode_name == name), None)
        elif not name and isinstance(kind, msgspec.inspect.VarTupleType):
            kind = kind.item_type
        else:
            return None
    return kind
