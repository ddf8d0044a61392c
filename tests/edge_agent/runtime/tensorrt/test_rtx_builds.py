"""Real engines by TensorRT-RTX, which parses and builds without a GPU; nothing here runs one."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path

import onnx
import pytest

from edge_agent.contract.errors import EngineBuildCancelled, EngineBuildFailed
from edge_agent.runtime.gpu.survey import TensorRtLibrary
from edge_agent.runtime.tensorrt.bindings import Bindings, import_bindings
from edge_agent.runtime.tensorrt.builder import BuildRequest, EngineBuilder
from edge_agent.runtime.tensorrt.job import Progress
from edge_agent.runtime.tensorrt.profiles import ShapeProfile
from edge_agent.runtime.tensorrt.worker_process import WorkerLimits
from tests.edge_agent.runtime.tensorrt.onnx_models import (
    IMAGE,
    convolutions,
    golden_file,
    image_profiles,
    images,
    perceptron,
    quantised,
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed (`make gpu-parts` does): real builds are NOT tested",
)
LIBRARY = TensorRtLibrary(module="tensorrt_rtx", flavour="tensorrt-rtx", version=(1, 7, 1, 116))


@pytest.fixture
def builder(tmp_path: Path) -> EngineBuilder:
    return EngineBuilder(LIBRARY, tmp_path / "builds", conditions="rtx", limits=WorkerLimits())


@pytest.fixture(scope="module")
def rtx() -> Bindings:
    return import_bindings("tensorrt_rtx", "tensorrt-rtx")


def request(model: Path, **settings: object) -> BuildRequest:
    """Without a GPU RTX builds for every GPU, and refuses engines whose weights can be replaced."""
    given = {"model": model, "profiles": image_profiles(), "refittable": False, "this_gpu_only": False, **settings}
    return BuildRequest(**given)  # type: ignore[arg-type]


def nothing(_: Progress) -> None: ...


def test_a_network_is_parsed_and_an_engine_built_with_progress(builder: EngineBuilder, tmp_path: Path) -> None:
    told: list[Progress] = []

    built = builder.build(request(convolutions(tmp_path / "a.onnx")), told.append, threading.Event())

    assert built.plan.read_bytes()[:4] == b"vtrt"
    assert built.facts.precision == "fp32"
    percents = [each.percent for each in told]
    assert percents == sorted(percents)
    assert percents[-1] >= 90.0
    assert len({each.phase for each in told}) > 3


def test_several_profiles_and_weights_in_a_file_of_their_own(builder: EngineBuilder, tmp_path: Path) -> None:
    model = convolutions(tmp_path / "a.onnx", outside=True)
    single = (ShapeProfile(IMAGE, (1, 3, 32, 32), (1, 3, 32, 32), (1, 3, 32, 32)),)

    built = builder.build(request(model, profiles=(*image_profiles(), single)), nothing, threading.Event())

    assert built.plan.stat().st_size > 10_000


def test_half_precision_makes_the_engine_smaller(builder: EngineBuilder, tmp_path: Path) -> None:
    model = convolutions(tmp_path / "a.onnx", channels=128)
    golden = golden_file(tmp_path / "golden.npz", model, {IMAGE: images()})

    full = builder.build(request(model), nothing, threading.Event())
    half = builder.build(request(model, precision="fp16", golden=golden), nothing, threading.Event())

    assert half.facts.precision == "fp16"
    assert half.plan.stat().st_size < 0.8 * full.plan.stat().st_size


def test_nodes_kept_in_float32_and_casts_between_are_taken(builder: EngineBuilder, tmp_path: Path) -> None:
    model = perceptron(tmp_path / "a.onnx", scale=1e6)
    golden = golden_file(tmp_path / "golden.npz", model, {IMAGE: images(4, 4)})
    profiles = ((ShapeProfile(IMAGE, (1, 4), (4, 4), (8, 4)),),)

    built = builder.build(
        request(model, profiles=profiles, precision="fp16", golden=golden), nothing, threading.Event()
    )

    assert built.facts.kept_fp32 == ("multiply", "shrink")


def test_a_quantised_model_is_taken_as_int8(builder: EngineBuilder, tmp_path: Path) -> None:
    built = builder.build(request(quantised(tmp_path / "a.onnx")), nothing, threading.Event())

    assert built.facts.precision == "int8"


def test_an_operator_that_is_not_known_is_named_and_final(builder: EngineBuilder, tmp_path: Path) -> None:
    model = perceptron(tmp_path / "a.onnx", operator="Mystery")

    with pytest.raises(EngineBuildFailed, match=r"does not take the model: .*node 'bound' \(Mystery\)") as caught:
        builder.build(request(model), nothing, threading.Event())
    assert caught.value.is_final


def test_a_file_that_is_no_model_is_final(builder: EngineBuilder, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\x08\x08 no model")

    with pytest.raises(EngineBuildFailed, match="does not take the model") as caught:
        builder.build(request(tmp_path / "a.onnx"), nothing, threading.Event())
    assert caught.value.is_final


def test_profiles_of_other_inputs_are_refused_for_good(builder: EngineBuilder, tmp_path: Path) -> None:
    profiles = ((ShapeProfile("picture", (1, 3, 32, 32), (1, 3, 32, 32), (1, 3, 32, 32)),),)

    with pytest.raises(EngineBuildFailed, match=r"inputs are \['image'\], its signature's \['picture'\]") as caught:
        builder.build(request(convolutions(tmp_path / "a.onnx"), profiles=profiles), nothing, threading.Event())
    assert caught.value.is_final


def test_a_workspace_that_is_too_small_is_a_reason_of_tensorrts_own(tmp_path: Path) -> None:
    builder = EngineBuilder(LIBRARY, tmp_path / "builds", limits=WorkerLimits(), workspace_bytes=1 << 10)

    with pytest.raises(EngineBuildFailed, match=r"TensorRT gives no engine: .*workspace") as caught:
        builder.build(request(convolutions(tmp_path / "a.onnx", layers=12)), nothing, threading.Event())
    assert not caught.value.is_final


def test_without_a_gpu_an_engine_for_this_one_alone_is_refused_and_not_crashed(
    builder: EngineBuilder, tmp_path: Path
) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("here is a GPU")

    with pytest.raises(EngineBuildFailed, match=r"TensorRT gives no engine: .*(?i:cuda)"):
        builder.build(request(convolutions(tmp_path / "a.onnx"), this_gpu_only=True), nothing, threading.Event())


def test_a_build_is_broken_off_between_two_steps(builder: EngineBuilder, tmp_path: Path) -> None:
    cancelled, told = threading.Event(), list[Progress]()

    def cancel_once_it_builds(progress: Progress) -> None:
        told.append(progress)
        if progress.percent >= 8.0:
            cancelled.set()

    with pytest.raises(EngineBuildCancelled):
        builder.build(request(convolutions(tmp_path / "a.onnx", layers=60)), cancel_once_it_builds, cancelled)

    assert told[-1].percent < 96.0
    assert list((tmp_path / "builds").glob(".*")) == []


def test_a_build_beyond_its_memory_is_ended(tmp_path: Path) -> None:
    model = convolutions(tmp_path / "a.onnx", layers=4, channels=512)
    builder = EngineBuilder(LIBRARY, tmp_path / "builds", limits=WorkerLimits(memory_bytes=48 << 20))

    with pytest.raises(EngineBuildFailed, match="its limit is 48 MiB"):
        builder.build(request(model), nothing, threading.Event())
    assert list((tmp_path / "builds").glob(".*")) == []


def test_a_damaged_plan_is_refused_with_an_error_and_no_crash(rtx: Bindings) -> None:
    lines: list[str] = []
    runtime = rtx.trt.Runtime(rtx.new_logger(lambda severity, line: lines.append(f"{severity}: {line}")))

    with pytest.raises(EngineBuildFailed, match="refuses the engine; it must be built again"):
        rtx.deserialise(runtime, b"no plan at all" * 100)
    assert any(line.startswith("error: ") for line in lines)


def test_the_model_of_the_tests_is_one_that_onnx_takes_too(tmp_path: Path) -> None:
    for file in (convolutions(tmp_path / "a.onnx"), perceptron(tmp_path / "b.onnx"), quantised(tmp_path / "c.onnx")):
        onnx.checker.check_model(onnx.load(str(file)), full_check=True)


def test_numpy_has_the_types_that_signatures_name_and_no_others(rtx: Bindings) -> None:
    types = rtx.trt.DataType

    assert [rtx.numpy_dtype(each).str for each in (types.FLOAT, types.HALF, types.INT64, types.INT8)] == [
        "<f4", "<f2", "<i8", "|i1",
    ]  # fmt: skip
    with pytest.raises(EngineBuildFailed, match="FP8, which numpy cannot hold"):
        rtx.numpy_dtype(types.FP8)
