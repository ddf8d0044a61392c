"""What is measured of a package while it is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.contract.constraint import Constraint, Encoding
from edge_agent.contract.manifest import GOLDEN_FILE
from edge_agent.contract.signature import Signature
from edge_agent.runtime.budget import MemoryBudget
from edge_agent.runtime.loaded import ON_CPU, OtherRuntime, load
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Golden, encode_golden
from tests.fakes.packages import make_package
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


class StubbornBackend(OnnxBackend):
    """One whose driver has failed, and fails once more when it is to let go."""

    def close(self) -> None:
        super().close()
        raise RuntimeError("an illegal memory access was encountered")


def test_what_fails_when_it_is_closed_is_counted_no_longer(tmp_path: Path) -> None:
    package, budget = make_package(tmp_path / "digits"), MemoryBudget()
    loaded = load(package, runtime=OtherRuntime(lambda: StubbornBackend(package), ON_CPU))
    budget.hold(loaded)
    assert budget.models() == [loaded]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        loaded.close()
    assert budget.models() == []
    loaded.close()  # again is no harm
