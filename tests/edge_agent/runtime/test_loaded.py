"""What is measured of a package while it is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np

from edge_agent.contract.constraint import Constraint, Encoding
from edge_agent.contract.manifest import GOLDEN_FILE
from edge_agent.contract.signature import Signature
from edge_agent.runtime.loaded import load
from edge_agent.runtime.package import Golden, encode_golden
from tests.fakes.text_package import TEXT, make_text_package


def test_golden_rows_are_measured_as_the_model_sees_them(tmp_path: Path) -> None:
    """In Latin-1 they are no text that the runtime takes: unchecked they would fail, and count as slow."""
    package = make_text_package(tmp_path / "echo")
    old = package.manifest.signature
    spec = msgspec.structs.replace(old.inputs[0], constraint=Constraint(encoding=Encoding.LATIN_1))
    manifest = msgspec.structs.replace(package.manifest, signature=Signature(inputs=(spec,), outputs=old.outputs))
    golden = package.golden()
    sent = np.array([["schön".encode("latin-1")]] * 2, dtype=object)
    package.path(GOLDEN_FILE).write_bytes(encode_golden(Golden({TEXT: sent}, golden.outputs)))
    loaded = load(dataclasses.replace(package, manifest=manifest))
    assert np.isfinite(loaded.run_us)
    loaded.close()
