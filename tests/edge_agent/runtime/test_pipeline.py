"""Models that run one after the other, as one."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.constraint import Constraint, Encoding, NumberFormat
from edge_agent.contract.errors import (
    ModelFailed,
    ModelLoadFailed,
    ModelUnavailable,
    SelfTestFailed,
    SignatureMismatch,
)
from edge_agent.contract.manifest import PipelineStep, digest_of
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.backend import RunCancelled
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package
from edge_agent.runtime.pipeline import PipelineBackend
from edge_agent.runtime.selftest import prove, self_test
from edge_agent.runtime.slots import LoadedModel, Slots, load
from tests.fakes.hanging_package import FOREVER, make_hanging_package
from tests.fakes.packages import INPUT, OUTPUT, PIXELS, answer, make_package, model_weights, reference_images
from tests.fakes.pipeline_package import (
    RAW,
    SCALED,
    STEPS,
    make_pipeline_package,
    make_pipeline_signature,
    make_scaler_package,
)
from tests.fakes.text_package import TEXT, make_text_package

SCALER = PipelineStep(model="scaler")


@pytest.fixture
def slots(tmp_path: Path) -> Iterator[Slots]:
    """Where "scaler" and "digits" serve; the latter fails on pixels above 0.95."""
    slots = Slots()
    slots.install(load(make_scaler_package(tmp_path / "scaler")))
    slots.install(load(make_package(tmp_path / "digits", fails_above=0.95)))
    yield slots
    slots.close()


def pipeline(tmp_path: Path, slots: Slots, *steps: PipelineStep) -> PipelineBackend:
    return PipelineBackend(make_pipeline_package(tmp_path / "reader", steps=steps or STEPS), slots)


def raw(rows: int = 3) -> NDArray[np.float32]:
    return reference_images(rows) * np.float32(255)


def test_it_answers_as_its_steps_one_after_the_other(tmp_path: Path, slots: Slots) -> None:
    loaded = load(make_pipeline_package(tmp_path / "reader"), slots=slots)
    assert loaded.backend.platform == "ensemble"
    assert loaded.inline
    outputs = loaded.backend.infer({RAW: raw()})
    assert list(outputs) == [OUTPUT], "not what lies between the steps"
    np.testing.assert_allclose(outputs[OUTPUT], answer(*model_weights(), raw() / np.float32(255)), rtol=1e-4)
    self_test(loaded.backend, loaded.package.golden())


def test_golden_answers_are_compared_only_where_the_steps_are_those_that_gave_them(
    tmp_path: Path, slots: Slots
) -> None:
    digests = [slots.get(model).digest for model in ("scaler", "digits")]
    slots.install(load(make_package(tmp_path / "digits2", version="2", seed=5)))
    loaded = load(make_pipeline_package(tmp_path / "reader"), slots=slots)
    with pytest.raises(SelfTestFailed, match=f"output '{OUTPUT}', row 0"):
        self_test(loaded.backend, loaded.package.golden())
    prove(loaded)

    def made_of(*steps: str) -> LoadedModel:
        lineage = msgspec.structs.replace(loaded.manifest.lineage, code_sha256=digest_of("\n".join(steps).encode()))
        manifest = msgspec.structs.replace(loaded.manifest, lineage=lineage)
        package = dataclasses.replace(loaded.package, manifest=manifest)
        return LoadedModel(package=package, backend=PipelineBackend(package, slots))

    prove(made_of(*digests))  # with the first version of "digits", which is gone
    with pytest.raises(SelfTestFailed, match=f"output '{OUTPUT}', row 0"):
        prove(made_of(digests[0], slots.get("digits").digest))


def test_each_step_counts_for_its_own_model(tmp_path: Path, slots: Slots) -> None:
    backend = pipeline(tmp_path, slots)
    backend.infer({RAW: raw()})
    for model in ("scaler", "digits"):
        loaded = slots.get(model)
        counts = loaded.statistics.snapshot()
        assert (counts.success_count, counts.rows, counts.execution_count) == (1, 3, 1)
        assert loaded.requests == 1


def test_a_step_is_replaced_while_the_pipeline_serves(tmp_path: Path, slots: Slots) -> None:
    backend = pipeline(tmp_path, slots)
    before = backend.infer({RAW: raw()})[OUTPUT]
    slots.install(load(make_package(tmp_path / "digits2", version="2", seed=5)))
    after = backend.infer({RAW: raw()})[OUTPUT]
    np.testing.assert_allclose(after, answer(*model_weights(5), raw() / np.float32(255)), rtol=1e-4)
    assert not np.allclose(before, after)


def test_a_new_version_of_a_step_that_does_not_fit_makes_it_unavailable(tmp_path: Path, slots: Slots) -> None:
    backend = pipeline(tmp_path, slots)
    slots.install(load(make_scaler_package(tmp_path / "scaler2", version="2", output="other")))
    with pytest.raises(ModelUnavailable, match=r"step 1 'scaler' version '2': gives no 'scaled' any more"):
        backend.infer({RAW: raw()})


def test_a_step_that_is_missing_at_run_time_is_named(tmp_path: Path, slots: Slots) -> None:
    backend = pipeline(tmp_path, slots)
    slots.remove("digits")
    with pytest.raises(ModelUnavailable, match="pipeline 'reader', step 2 'digits': model 'digits' is not served"):
        backend.infer({RAW: raw()})
    slots.install(load(make_package(tmp_path / "digits3")))
    assert OUTPUT in backend.infer({RAW: raw()})


def test_a_step_that_fails_is_named_and_counted(tmp_path: Path, slots: Slots) -> None:
    backend = pipeline(tmp_path, slots)
    bright = np.full((1, PIXELS), 250.0, np.float32)
    with pytest.raises(ModelFailed, match="pipeline 'reader', step 2 'digits' version '1' failed"):
        backend.infer({RAW: bright})
    assert slots.get("digits").failed == 1
    assert slots.get("scaler").failed == 0
    assert slots.get("digits").statistics.snapshot().fail_count == 1


def test_what_a_step_cannot_take_from_another_is_not_the_application_s_fault(tmp_path: Path, slots: Slots) -> None:
    backend = pipeline(tmp_path, slots)
    with pytest.raises(ModelFailed, match=r"step 2 'digits' cannot take what an earlier step gives: .*range"):
        backend.infer({RAW: np.full((1, PIXELS), 300.0, np.float32)})


def test_an_input_that_breaks_a_step_s_signature_is_named_as_the_application_sent_it(
    tmp_path: Path, slots: Slots
) -> None:
    renamed = TensorSpec(name="picture", datatype=Datatype.FP32, shape=(None, PIXELS), constraint=Constraint())
    package = make_pipeline_package(
        tmp_path / "reader",
        steps=(PipelineStep(model="digits", inputs={INPUT: "picture"}),),
        signature=make_pipeline_signature(renamed),
    )
    with pytest.raises(SignatureMismatch, match=r"input 'picture', row 1: range: .*step 1 'digits'"):
        PipelineBackend(package, slots).infer({"picture": np.array([[0.0] * PIXELS, [7.0] * PIXELS], np.float32)})


def constrained(package: Package, limits: Constraint) -> Package:
    """The package with other limits for its one input."""
    signature = package.manifest.signature
    given = msgspec.structs.replace(signature.inputs[0], constraint=limits)
    signature = Signature(inputs=(given,), outputs=signature.outputs)
    manifest = msgspec.structs.replace(package.manifest, signature=signature)
    return dataclasses.replace(package, manifest=manifest, digest=digest_of(str(limits).encode()))


def test_what_the_pipeline_s_own_check_has_filled_is_not_checked_again(tmp_path: Path, slots: Slots) -> None:
    limits = Constraint(minimum=0.0, maximum=1.0, nullable=True, fill=-1.0)
    digits = make_package(tmp_path / "digits2", version="2")
    slots.install(load(constrained(digits, limits)))
    spec = TensorSpec(name=INPUT, datatype=Datatype.FP32, shape=(None, PIXELS), constraint=limits)
    package = make_pipeline_package(
        tmp_path / "reader", steps=(PipelineStep(model="digits"),), signature=make_pipeline_signature(spec)
    )
    backend = PipelineBackend(package, slots)
    images = reference_images(2)
    images[0, 0] = np.nan
    checked = InputCheck(package.manifest.signature)({INPUT: images}).inputs
    seen = np.nan_to_num(images, nan=-1.0)
    np.testing.assert_allclose(backend.infer(checked)[OUTPUT], answer(*model_weights(), seen), rtol=1e-4)
    slots.install(load(constrained(digits, Constraint(minimum=0.0, maximum=0.95))))
    with pytest.raises(SignatureMismatch, match=r"above the maximum 0\.95"):
        backend.infer({INPUT: np.full((1, PIXELS), 0.99, np.float32)})


@pytest.mark.parametrize("wider", [False, True], ids=["the same limits", "other limits"])
def test_what_the_pipeline_s_own_check_has_written_anew_is_read_as_it_is_now(
    tmp_path: Path, slots: Slots, *, wider: bool
) -> None:
    limits = Constraint(encoding=Encoding.LATIN_1, number=NumberFormat(decimal=",", grouping="."), maximum=5000.0)
    package = constrained(make_text_package(tmp_path / "echo"), limits)
    slots.install(LoadedModel(package=package, backend=OnnxBackend(package)))
    pipeline_limits = msgspec.structs.replace(limits, maximum=9000.0) if wider else limits
    signature = constrained(package, pipeline_limits).manifest.signature
    manifest = msgspec.structs.replace(
        package.manifest, name="reader", signature=signature, variants={}, pipeline=(PipelineStep(model="echo"),)
    )
    backend = PipelineBackend(Package(folder=tmp_path, manifest=manifest, digest="0" * 64), slots)
    check = InputCheck(signature)
    sent = np.array([[b"1.234,50"]], dtype=object)
    assert backend.infer(check({TEXT: sent}).inputs)["echo"].tolist() == [[b"1234.50"]]
    if wider:
        with pytest.raises(SignatureMismatch, match="above the maximum 5000"):
            backend.infer(check({TEXT: np.array([[b"6.000"]], dtype=object)}).inputs)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((PipelineStep(model="digits"),), "step 1 'digits'.*input 'image' is to come from 'image', which nothing"),
        (
            (SCALER, PipelineStep(model="digits", inputs={"picture": SCALED})),
            "step 2 'digits'.*the model has no input 'picture'; it has: image",
        ),
        (
            (PipelineStep(model="scaler", outputs={"scalled": "x"}),),
            "step 1 'scaler'.*the model has no output 'scalled'; it has: scaled",
        ),
        ((SCALER,), "no step gives output 'probabilities'"),
        ((SCALER, SCALER), "step 2 'scaler'.*output 'scaled' would replace 'scaled'"),
        (
            (PipelineStep(model="scaler", outputs={SCALED: OUTPUT}),),
            r"output 'probabilities' has shape \[-1, 10\], 'scaled' has \[-1, 64\]",
        ),
        ((SCALER, PipelineStep(model="digits", version="9", inputs={INPUT: SCALED})), "no version '9'"),
    ],
)
def test_steps_that_do_not_fit_are_refused_at_load(
    tmp_path: Path, slots: Slots, steps: tuple[PipelineStep, ...], message: str
) -> None:
    with pytest.raises((ModelLoadFailed, ModelUnavailable), match=message):
        pipeline(tmp_path, slots, *steps)


def test_an_input_that_no_step_uses_is_refused(tmp_path: Path, slots: Slots) -> None:
    more = [TensorSpec(name=name, datatype=Datatype.FP32, shape=(None, PIXELS)) for name in (RAW, "more")]
    package = make_pipeline_package(tmp_path / "reader", signature=make_pipeline_signature(*more))
    with pytest.raises(ModelLoadFailed, match="no step uses input 'more'"):
        PipelineBackend(package, slots)


def test_other_datatypes_are_refused(tmp_path: Path, slots: Slots) -> None:
    double = TensorSpec(name=RAW, datatype=Datatype.FP64, shape=(None, PIXELS))
    package = make_pipeline_package(tmp_path / "reader", signature=make_pipeline_signature(double))
    with pytest.raises(ModelLoadFailed, match=r"step 1 'scaler'.*input 'raw' is FP32, 'raw' is FP64"):
        PipelineBackend(package, slots)


def test_a_pipeline_in_a_pipeline_is_refused(tmp_path: Path, slots: Slots) -> None:
    slots.install(load(make_pipeline_package(tmp_path / "inner", name="inner"), slots=slots))
    package = make_pipeline_package(tmp_path / "outer", steps=(PipelineStep(model="inner"),))
    with pytest.raises(ModelLoadFailed, match="step 1 'inner': is a pipeline itself"):
        PipelineBackend(package, slots)


def test_cancelling_breaks_off_the_step_that_runs(tmp_path: Path, slots: Slots) -> None:
    slots.install(load(make_hanging_package(tmp_path / "sleeper")))
    backend = pipeline(tmp_path, slots, SCALER, PipelineStep(model="sleeper", inputs={INPUT: SCALED}))
    hanging = raw(1)
    hanging[0, 0] = FOREVER * 255
    timer = threading.Timer(0.3, backend.cancel)
    timer.start()
    with pytest.raises(RunCancelled):
        backend.infer({RAW: hanging})
    timer.join()
    assert OUTPUT in backend.infer({RAW: raw()}), "the next run is not concerned"
    assert slots.get("scaler").statistics.snapshot().success_count == 2
