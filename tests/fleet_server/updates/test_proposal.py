"""Proposals, at any threshold: what server and publisher count as enough is the same, and is what a client counts."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner

from fleet_server.updates.image_verification import shown_roles
from fleet_server.updates.proposal import Proposal, check_proposal, payloads, with_signatures
from tests.trainer.publish.stock_client import StockClient
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder, approver_key

PATH = "digits/1/manifest.json"


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_a_release_is_complete_with_the_threshold_and_not_before(data: st.DataObject) -> None:
    persons = [f"p{number}" for number in range(data.draw(st.integers(1, 3), "approvers"))]
    threshold = data.draw(st.integers(2, 1 + len(persons)), "threshold")
    signers = data.draw(st.lists(st.sampled_from(persons), unique=True), "who approves")
    forged = data.draw(st.booleans(), "a stranger signs too")
    with tempfile.TemporaryDirectory() as name:
        keys = KeyFolder(Path(name) / "keys")
        signing = ImageSigning(keys)
        signing.create(())
        signing.add_model("digits", approvers=dict.fromkeys(persons), threshold=threshold)
        device = StockClient(Path(name) / "device", keys.folder / "image")
        assert device.target(PATH) is None
        signing.add_target("digits", PATH, 7, "1" * 64)
        (waiting,) = signing.releases.waiting.all()

        shown = shown_roles(lambda file: _read(keys.folder / "image" / file))
        proposal = Proposal(
            model="digits", version="1", roles=waiting.roles, path=PATH, length=7, package=waiting.package
        )
        approving = [keys.signer(approver_key(person)) for person in signers]
        strangers = [CryptoSigner.generate_ed25519()] if forged else []
        signed = {
            role: {one.public_key.keyid: one.sign(payload).signature for one in (*approving, *strangers)}
            for role, payload in payloads(proposal).items()
        }
        _, results = check_proposal(with_signatures(proposal, signed), shown, dt.datetime.now(dt.UTC))
        assert results["digits"].missing == max(0, threshold - 1 - len(signers))

        enough = 1 + len(signers) >= threshold
        assert signing.releases.complete(waiting, signed) is enough
        assert (device.target(PATH) is not None) is enough


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
