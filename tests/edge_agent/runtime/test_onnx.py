"""Models on ONNX Runtime: what they answer, and which are refused when loaded."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from edge_agent.contract.errors import (
    AcceleratorUnavailable,
    ModelLoadFailed,
    PackageError,
    SelfTestFailed,
    SignatureMismatch,
)
from edge_agent.contract.manifest import REFERENCE_FILE, Manifest, encode_manifest
from edge_agent.contract.profile import Projection, encode_profile
from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.onnx_session import CUDA_PROVIDER
from edge_agent.runtime.package import Package, Tolerance
from edge_agent.runtime.selftest import deviation, self_test
from edge_agent.runtime.slots import load
from tests.fakes.packages import INPUT, OUTPUT, answer, make_package, model_weights, reference_images
from tests.fakes.text_package import TEXT, make_text_package


@pytest.mark.parametrize("external", [False, True])
def test_a_model_answers_what_numpy_computes(tmp_path: Path, external: bool) -> None:
    backend = OnnxBackend(make_package(tmp_path / "package", seed=3, external_data=external))
    for rows in (1, 2, 33):
        images = reference_images(rows, seed=rows)
        outputs = backend.infer({INPUT: images})
        np.testing.assert_allclose(outputs[OUTPUT], answer(*model_weights(3), images), atol=1e-6)
    backend.close()


def test_a_text_model_takes_and_gives_bytes(tmp_path: Path) -> None:
    backend = OnnxBackend(make_text_package(tmp_path / "package"))
    words = np.array([["né".encode()], [b"b"]], dtype=object)
    outputs = backend.infer({TEXT: words})
    assert outputs["echo"].tolist() == words.tolist()


def test_text_that_is_no_utf8_names_its_row(tmp_path: Path) -> None:
    backend = OnnxBackend(make_text_package(tmp_path / "package"))
    with pytest.raises(SignatureMismatch, match="row 1: datatype: is no UTF-8") as caught:
        backend.infer({TEXT: np.array([[b"a"], [b"\xff"]], dtype=object)})
    assert caught.value.row == 1


def test_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no variant 'int8'"):
        OnnxBackend(make_package(tmp_path / "package"), variant="int8")


def test_bytes_that_are_no_model_are_refused(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package")
    package.path("model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelLoadFailed, match="refuses the model"):
        load(package)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"shape": (None, 63)}, "the manifest says"),
        ({"datatype": Datatype.FP64}, "the manifest says FP64"),
        ({"name": "other"}, "input 'other' is not in the model"),
    ],
)
def test_a_model_that_differs_from_its_manifest_is_refused(
    tmp_path: Path, change: dict[str, object], text: str
) -> None:
    package = make_package(tmp_path / "package")
    signature = package.manifest.signature
    inputs = (msgspec.structs.replace(signature.inputs[0], **change),)
    lying = msgspec.structs.replace(package.manifest, signature=Signature(inputs=inputs, outputs=signature.outputs))
    with pytest.raises(ModelLoadFailed, match=text):
        OnnxBackend(_rewritten(package, lying))


def test_a_model_whose_batch_axis_was_fixed_on_export_is_refused(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package")
    model = onnx.load(package.path("model.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, package.path("model.onnx"))
    with pytest.raises(ModelLoadFailed, match=r"has shape \[1, 64\], the manifest says \[None, 64\]"):
        OnnxBackend(package)


def test_a_profile_that_does_not_fit_the_model_is_refused_when_loaded(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package")
    profile = package.reference()
    feature = msgspec.structs.replace(profile.features[0], projection=Projection.ELEMENT, index=64)
    broken = msgspec.structs.replace(profile, features=(feature, *profile.features[1:]))
    package.path(REFERENCE_FILE).write_bytes(encode_profile(broken))
    with pytest.raises(PackageError, match="index 64"):
        load(package)


def test_an_execution_provider_that_the_runtime_lacks_is_said_and_not_replaced_by_the_cpu(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package")
    with pytest.raises(AcceleratorUnavailable, match=r"was built without CUDAExecutionProvider; it has: .*CPU"):
        OnnxBackend(package, provider=CUDA_PROVIDER)


def test_how_far_a_model_is_from_its_golden_samples_is_a_share_of_its_tolerance(tmp_path: Path) -> None:
    exact, wrong = load(make_package(tmp_path / "1")), load(make_package(tmp_path / "2", golden_is_wrong=True))
    assert deviation(exact) < 0.1
    wrong.tolerance = Tolerance(rtol=0.0, atol=1.0)
    assert deviation(wrong) == pytest.approx(0.5, rel=0.01)


def test_the_self_test_passes_on_the_package_as_made(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package")
    self_test(OnnxBackend(package), package.golden())


def test_the_self_test_names_output_row_and_difference(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package", golden_is_wrong=True)
    with pytest.raises(SelfTestFailed, match=r"output 'probabilities', row 3: .* a difference of 0\.5"):
        self_test(OnnxBackend(package), package.golden())


def test_the_self_test_fails_where_the_model_fails(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package", fails_above=0.0)
    with pytest.raises(SelfTestFailed, match="fails on its golden samples"):
        self_test(OnnxBackend(package), package.golden())
    assert load(package).inline is False


def test_a_small_model_is_measured_as_fit_for_the_event_loop(tmp_path: Path) -> None:
    loaded = load(make_package(tmp_path / "package"))
    assert (loaded.name, loaded.version, loaded.requests, loaded.failed) == ("digits", "1", 0, 0)


def _rewritten(package: Package, manifest: Manifest) -> Package:
    (package.folder / "manifest.json").write_bytes(encode_manifest(manifest))
    return Package.open(package.folder, verify=True)


@pytest.mark.parametrize(("usual", "largest", "given_back"), [(1, 4, True), (3, 3, False), (3, 8, True)])
def test_memory_of_a_batch_is_given_back_but_for_the_rows_that_usually_come_together(
    tmp_path: Path, usual: int, largest: int, given_back: bool
) -> None:
    backend = OnnxBackend(make_package(tmp_path / "package"))
    backend.usual_rows = usual
    backend.infer({INPUT: reference_images(largest)})
    shrinking = [backend._options_for(1) is backend._shrinking for _ in range(30)]
    assert any(shrinking) is given_back
    backend.close()
