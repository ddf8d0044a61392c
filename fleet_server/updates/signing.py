"""Small TUF documents, signed fast: what python-tuf would write, without the objects in between.

python-tuf's own way spends 1.3 ms of pure Python on the three documents of one device, an Ed25519 signature 0.05 ms.
"""

from __future__ import annotations

from typing import Any

import msgspec
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Signer

_SORTED = msgspec.json.Encoder(order="sorted")


def canonical(document: Any) -> bytes:
    """A document in OLPC's canonical JSON, which is what TUF signs.

    It sorts keys, has no spaces, and escapes nothing but quotes and backslashes; ordinary JSON differs from it only
    where it escapes more, so that without any backslash the two are the same bytes.

    Args:
        document: Dictionaries, lists, strings, integers, booleans, None and msgspec structures; no floats.
    """
    data = _SORTED.encode(document)
    if b"\\" not in data:
        return data
    return str(encode_canonical(msgspec.json.decode(data))).encode()


def signed(document: dict[str, Any], signer: Signer) -> bytes:
    """The file of a document with one signature, as python-tuf reads it."""
    signature = signer.sign(canonical(document))
    head = _SORTED.encode([{"keyid": signature.keyid, "sig": signature.signature}])
    # Not the canonical form: it leaves control characters bare, which no reader of JSON takes.
    return b'{"signatures":' + head + b',"signed":' + _SORTED.encode(document) + b"}"
