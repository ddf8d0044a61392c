"""Parser, network, configuration, builder."""

# ruff: noqa: ARG002 - the arguments are TensorRT's

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from tests.fakes.tensorrt_module.enums import (
    OF_NUMPY,
    BuilderFlag,
    DataType,
    Dims,
    HardwareCompatibilityLevel,
    IHostMemory,
    ILogger,
    LayerType,
    MemoryPoolType,
    ProfilingVerbosity,
    tell,
)
from tests.fakes.tensorrt_module.faults import fault, number
from tests.fakes.tensorrt_module.plan import Plan, Profile, structure_of, whole_model

_STEPS = 20


class ITensor:
    """An input or output of a network."""

    def __init__(self, info: onnx.ValueInfoProto) -> None:
        tensor = info.type.tensor_type
        self.name = info.name
        self.shape = Dims(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        self.dtype = OF_NUMPY.get(dtype, DataType.FLOAT)  # doubles become floats, as the real parser does
        self.is_shape_tensor = False
        self.is_network_input = self.is_network_output = True


class ILayer:
    """An operator of a network."""

    def __init__(self, node: onnx.NodeProto, outputs: list[ITensor]) -> None:
        self.name = node.name
        kinds = {"QuantizeLinear": LayerType.QUANTIZE, "DequantizeLinear": LayerType.DEQUANTIZE}
        self.type = kinds.get(node.op_type, LayerType.ELEMENTWISE)
        self._outputs = outputs

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]


class INetworkDefinition:
    """What a parser fills."""

    def __init__(self, flags: int) -> None:
        self.flags, self.name = flags, ""
        self._model: onnx.ModelProto | None = None
        self._layers: list[ILayer] = []
        self._inputs: list[ITensor] = []
        self._outputs: list[ITensor] = []

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]

    def get_flag(self, flag: Any) -> bool:
        return bool(self.flags >> int(flag) & 1)

    def _fill(self, model: onnx.ModelProto) -> None:
        self._model, self.name = model, model.graph.name
        weights = {weight.name for weight in model.graph.initializer}
        self._inputs = [ITensor(info) for info in model.graph.input if info.name not in weights]
        self._outputs = [ITensor(info) for info in model.graph.output]
        graph = onnx.shape_inference.infer_shapes(model).graph
        known = {info.name: ITensor(info) for info in (*graph.value_info, *graph.output)}
        self._layers = [ILayer(node, [known[name] for name in node.output if name in known]) for node in graph.node]


class ParserError:
    """Why a model was refused."""

    def __init__(self, desc: str, node: onnx.NodeProto | None = None) -> None:
        self._desc, self._node = desc, node

    def code(self) -> str:
        return "ErrorCode.UNSUPPORTED_NODE"

    def desc(self) -> str:
        return self._desc

    def node_name(self) -> str:
        return self._node.name if self._node else ""

    def node_operator(self) -> str:
        return self._node.op_type if self._node else ""


class OnnxParser:
    """Reads ONNX into a network."""

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._logger = network, logger
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def clear_errors(self) -> None:
        self._errors = []

    def parse_from_file(self, model: str) -> bool:
        path = Path(model)
        if not path.is_file():
            return self._refuse(ParserError(f"Failed to open file: {model}"))
        return self.parse(path.read_bytes(), model)

    def parse(self, model: bytes, path: str | None = None) -> bool:
        try:
            whole = whole_model(bytes(model), str(Path(path).parent) if path else ".")
            onnx.checker.check_model(whole)
        except Exception as error:  # noqa: BLE001 - a parser only says no
            return self._refuse(ParserError(f"Failed to parse the ONNX model: {error}"))
        refused = fault("REFUSED").split(",")
        for node in whole.graph.node:
            if node.op_type in refused:
                return self._refuse(ParserError(f"No importer registered for op: {node.op_type}", node))
        if any(i.type.tensor_type.elem_type == onnx.TensorProto.STRING for i in whole.graph.input):
            return self._refuse(ParserError("Failed to convert an input of type STRING"))
        self._network._fill(whole)
        return True

    def _refuse(self, error: ParserError) -> bool:
        self._errors.append(error)
        tell(self._logger, ILogger.ERROR, f"[onnxparser] {error.desc()}")
        return False


class IOptimizationProfile:
    """Shapes that an engine is made for."""

    def __init__(self) -> None:
        self.extra_memory_target = 1.0
        self._shapes: Profile = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:  # noqa: A002
        ordered = len(min) == len(opt) == len(max)
        if not ordered or any(not 0 <= a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
            raise ValueError(f"Shape provided for min/opt/max of {input} is inconsistent")
        self._shapes[input] = [list(min), list(opt), list(max)]

    def get_shape(self, input: str) -> list[Dims]:  # noqa: A002
        return [Dims(shape) for shape in self._shapes.get(input, [])]


class ITimingCache:
    """What earlier builds have measured."""

    def __init__(self, known: bytes) -> None:
        self._known = {line for line in known.split(b"\n") if line}

    def serialize(self) -> IHostMemory:
        return IHostMemory(b"\n".join(sorted(self._known)))

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._known |= input_cache._known
        return True

    def reset(self) -> bool:
        self._known = set()
        return True


class IProgressMonitor:
    """Told of phases and steps; may break off."""

    def __init__(self) -> None:
        pass

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError  # the real one's is pure virtual

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class IBuilderConfig:
    """How to build."""

    def __init__(self) -> None:
        self.flags = 0
        self.progress_monitor: IProgressMonitor | None = None
        self.builder_optimization_level = 3
        self.avg_timing_iterations = 1
        self.max_aux_streams = 0
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self._profiles: list[Profile] = []
        self._cache: ITimingCache | None = None
        self._pools: dict[MemoryPoolType, int] = {}

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def set_flag(self, flag: Any) -> None:
        self.flags |= 1 << int(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags &= ~(1 << int(flag))

    def get_flag(self, flag: Any) -> bool:
        return bool(self.flags >> int(flag) & 1)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        return self._pools.get(pool, 1 << 30)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    """Builds, in phases."""

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger
        self.max_threads = 1

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def is_network_supported(self, network: INetworkDefinition, config: IBuilderConfig) -> bool:
        return network._model is not None

    def reset(self) -> None:
        pass

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        model = network._model
        if model is None or fault("BUILD") == "fail" or not self._is_covered(network, config):
            self.logger.log(ILogger.ERROR, "Error Code 10: Could not find any implementation for node")
            return None
        if fault("BUILD") == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        structure = structure_of(model).encode()
        known = config._cache is not None and structure in config._cache._known
        taken = bytearray(int(number("BUILD_MIB") * (1 << 20)))
        taken[:] = b"\1" * len(taken)
        if not _work(config.progress_monitor, number("BUILD_S") * (0.1 if known else 1.0)):
            self.logger.log(ILogger.WARNING, "Build was cancelled by the progress monitor")
            return None
        if config._cache is not None:
            config._cache._known.add(structure)
        data = model.SerializeToString(deterministic=True)
        ort.InferenceSession(data, providers=["CPUExecutionProvider"])
        plan = Plan(
            model=data,
            profiles=config._profiles or [{each.name: [list(each.shape)] * 3 for each in network._inputs}],
            refittable=config.get_flag(BuilderFlag.REFIT),
            narrow_int64=fault("INT64") == "narrow",
        )
        return IHostMemory(plan.encode())

    def _is_covered(self, network: INetworkDefinition, config: IBuilderConfig) -> bool:
        """Whether a profile gives every dynamic input's shapes."""
        for tensor in network._inputs:
            covered = all(tensor.name in profile for profile in config._profiles) and config._profiles
            if -1 in tensor.shape and not covered:
                tell(self.logger, ILogger.ERROR, f"Input {tensor.name} has dynamic shapes, but no profile")
                return False
        return True


def _work(monitor: IProgressMonitor | None, seconds: float) -> bool:
    """Two phases, one within the other; whether it was let go on to the end."""
    with contextlib.ExitStack() as phases:
        for name, parent in (("Building Engine", None), ("Tactic Profiling", "Building Engine")):
            if monitor is not None:
                monitor.phase_start(name, parent, _STEPS)
                phases.callback(monitor.phase_finish, name)
        for step in range(_STEPS):
            time.sleep(seconds / _STEPS)
            for name in ("Tactic Profiling", "Building Engine"):
                if monitor is not None and not monitor.step_complete(name, step):
                    return False
    return True
