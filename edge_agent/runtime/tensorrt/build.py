"""Building and refitting, in the worker process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_agent.contract.errors import EngineBuildCancelled, EngineBuildFailed
from edge_agent.durable import sync_folder
from edge_agent.runtime.tensorrt.bindings import Bindings, import_bindings
from edge_agent.runtime.tensorrt.job import BuildJob, EngineFacts, RefitJob
from edge_agent.runtime.tensorrt.network import add_profiles, network_precision, parse_network, parser_errors
from edge_agent.runtime.tensorrt.precision import Cast, cast_to_fp16
from edge_agent.runtime.tensorrt.progress import new_monitor
from edge_agent.runtime.tensorrt.timing_cache import load_timings, save_timings

# Share of the whole at which TensorRT's own work begins and ends.
_BUILD_FROM, _BUILD_TO = 0.08, 0.96
_MOST_LINES = 3

Tell = Callable[[str, float], None]


def build_engine(job: BuildJob, tell: Tell, stop: threading.Event, place: Path) -> EngineFacts:
    """Build an engine and write its plan durably.

    Args:
        tell: Told the phase, and how much is done: 0..1.
        stop: Once set, TensorRT gives up at its next step.
        place: A folder for what is made on the way.
    Raises:
        EngineBuildFailed: Which says why; final where the same model would fail again.
        EngineBuildCancelled: ``stop`` was set.
        AcceleratorUnavailable: TensorRT's module cannot be imported.
    """
    tell("reading the model", 0.0)
    model, cast = Path(job.model), Cast()
    if job.precision == "fp16":
        tell("casting to half precision", 0.02)
        golden = None if job.golden is None else Path(job.golden)
        cast = cast_to_fp16(model, place / "fp16.onnx", golden=golden, tolerance=job.tolerance)
        model = place / "fp16.onnx"
    _check(stop)
    bindings = import_bindings(job.module, job.flavour)
    said = _Said()
    logger = bindings.new_logger(said.log)
    builder = bindings.trt.Builder(logger)
    network, parser = parse_network(bindings, builder, logger, model)
    precision = network_precision(bindings, network)
    config = _config(bindings, builder, job)
    add_profiles(builder, network, config, job.profiles)
    timings = None if job.timing_cache is None else Path(job.timing_cache)
    if timings is not None:
        load_timings(bindings, config, timings)
    _check(stop)
    span = _BUILD_TO - _BUILD_FROM
    # Held by name: the config does not keep it alive.
    monitor = new_monitor(bindings, lambda phase, share: tell(phase, _BUILD_FROM + share * span), stop)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    _check(stop)
    if plan is None:
        raise EngineBuildFailed(f"TensorRT gives no engine: {said.errors()}")
    del parser  # it owned the weights until here
    tell("writing the engine", _BUILD_TO)
    if timings is not None:
        save_timings(bindings, config, timings)
    _write(Path(job.plan), plan)
    return EngineFacts(
        precision="fp16" if job.precision == "fp16" else precision,
        was_cast=job.precision == "fp16",
        refittable=job.refittable,
        kept_fp32=cast.kept_fp32,
        difference=cast.difference,
    )


def refit_engine(job: RefitJob, tell: Tell, stop: threading.Event, place: Path) -> EngineFacts:
    """Read an engine, give it another model's weights, and write it durably under a new name. Needs a GPU.

    Raises:
        EngineBuildFailed: Also where a weight of the engine has none in the model.
        EngineBuildCancelled, AcceleratorUnavailable: As of :func:`build_engine`.
    """
    tell("reading the engine", 0.0)
    model = Path(job.model)
    if job.facts.was_cast:
        cast_to_fp16(model, place / "fp16.onnx", kept_fp32=job.facts.kept_fp32)
        model = place / "fp16.onnx"
    bindings = import_bindings(job.module, job.flavour)
    trt, said = bindings.trt, _Said()
    logger = bindings.new_logger(said.log)
    runtime = trt.Runtime(logger)
    with said.explained():
        engine = bindings.deserialise(runtime, Path(job.engine).read_bytes())
    _check(stop)
    tell("replacing the weights", 0.3)
    refitter = trt.Refitter(engine, logger)
    parser_refitter = trt.OnnxParserRefitter(refitter, logger)
    if not parser_refitter.refit_from_file(str(model)):
        raise EngineBuildFailed(f"the model's weights do not fit the engine: {parser_errors(parser_refitter)}")
    missing = refitter.get_missing_weights()
    if missing:
        raise EngineBuildFailed(f"the model has no weights for {len(missing)} of the engine's: {sorted(missing)[:5]}")
    _check(stop)
    if not refitter.refit_cuda_engine():
        raise EngineBuildFailed(f"TensorRT could not refit the engine: {said.errors()}")
    _check(stop)
    tell("writing the engine", _BUILD_TO)
    _write(Path(job.plan), bindings.serialise(engine))
    return EngineFacts(
        precision=job.facts.precision,
        was_cast=job.facts.was_cast,
        refittable=True,
        kept_fp32=job.facts.kept_fp32,
        refitted=True,
    )


class _Said:
    """What TensorRT said of its errors: its functions return None or False and log why."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def log(self, severity: str, line: str) -> None:
        """Remember errors; from any of TensorRT's threads."""
        if severity == "error":
            self._lines.append(line)

    def errors(self) -> str:
        """The last of them."""
        return " | ".join(self._lines[-_MOST_LINES:]) or "it does not say why"

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Add what TensorRT said to an error of ours."""
        try:
            yield
        except EngineBuildFailed as error:
            raise EngineBuildFailed(f"{error}: {self.errors()}", is_final=error.is_final) from error


def _config(bindings: Bindings, builder: Any, job: BuildJob) -> Any:
    trt = bindings.trt
    config = builder.create_builder_config()
    if job.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if not job.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if job.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace_bytes)
    if job.optimisation_level is not None:
        config.builder_optimization_level = job.optimisation_level
    if job.this_gpu_only and not bindings.build_for_this_gpu(config):
        raise EngineBuildFailed(f"{bindings.flavour} {bindings.version_text} does not know the GPU of this machine")
    return config


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise EngineBuildCancelled("the build was broken off")


def _write(path: Path, plan: Any) -> None:
    """A plan may have hundreds of MB: it is written as it lies, not copied first."""
    beside = path.with_name(f"{path.name}.part")
    try:
        with beside.open("wb") as file:
            file.write(memoryview(plan))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise EngineBuildFailed(f"{path}: the engine could not be written: {error.strerror}") from error
