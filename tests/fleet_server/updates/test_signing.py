"""Our fast way to sign against python-tuf's own."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, TargetFile, Targets

from fleet_server.updates.signing import canonical, signed

# JSON knows no lone surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(DOCUMENTS)
def test_any_document_has_the_canonical_form_that_python_tuf_gives_it(document: Any) -> None:
    assert canonical(document) == str(encode_canonical(document)).encode()


@given(st.dictionaries(TEXTS, TEXTS, max_size=5))
def test_what_is_signed_is_read_and_verified_by_python_tuf(custom: dict[str, str]) -> None:
    signer = CryptoSigner.generate_ed25519()
    expires = dt.datetime(2030, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    target = TargetFile(7, {"sha256": "ab"}, "a/b", unrecognized_fields={"custom": custom})
    theirs = Targets(3, expires=expires, targets={"a/b": target})
    data = signed(theirs.to_dict(), signer)
    read = Metadata[Targets].from_bytes(data)
    assert read.signed == theirs
    role = DelegatedRole("x", [signer.public_key.keyid], 1, terminating=True, paths=["*"])
    delegator = Delegations(keys={signer.public_key.keyid: signer.public_key}, roles={"x": role})
    Targets(1, expires=expires, delegations=delegator).verify_delegate("x", read.signed_bytes, read.signatures)
    assert json.loads(data)["signed"]["targets"]["a/b"]["custom"] == custom
