"""What the server's log leaves out where all is well."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
from fleet_server.commands.server import log_to_stderr
from tuf.api.metadata import Root, Targets
from securesystemslib.signer import CryptoSigner

log_to_stderr(sys.argv[1])
signer, other = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
root = Root()
for one in (signer, other):
    root.add_key(one.public_key, "targets")
from tuf.api.metadata import Metadata
metadata = Metadata(Targets())
metadata.sign(signer)
root.verify_delegate("targets", metadata.signed_bytes, metadata.signatures)
logging.getLogger("fleet_server").info("ready")
"""


@pytest.mark.parametrize("level", ["debug", "info"])
def test_a_key_that_need_not_sign_is_told_of_only_where_a_person_asks_for_everything(level: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, level], capture_output=True, text=True, timeout=60, check=True
    )
    assert "ready" in done.stderr
    assert ("No signature for keyid" in done.stderr) is (level == "debug")
