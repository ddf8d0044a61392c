"""Runtime, engine, execution context: ONNX Runtime at the addresses that a GPU would read and write."""

# ruff: noqa: ARG002 - the arguments are TensorRT's

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from tests.fakes.host_memory import memory_at
from tests.fakes.tensorrt_module.enums import (
    NUMPY,
    OF_NUMPY,
    DataType,
    Dims,
    ExecutionContextAllocationStrategy,
    IHostMemory,
    ILogger,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
    tell,
)
from tests.fakes.tensorrt_module.faults import fault, number, version_numbers
from tests.fakes.tensorrt_module.plan import Plan
from tests.fakes.tensorrt_module.streams import enqueue

# Whose results have as many elements as the values say.
_DATA_DEPENDENT = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress"})


class _Runs:
    """Runs under way, and those still to come that were enqueued before all were stopped."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stops = 0
        self.running: set[Any] = set()


_runs = _Runs()


def stop_all_runs() -> None:
    """End what has been enqueued and a real GPU would go on with; for the end of a test. No name of TensorRT's."""
    with _runs.lock:
        _runs.stops += 1
        for options in _runs.running:
            options.terminate = True


def init_libnvinfer_plugins(logger: ILogger | None, namespace: str) -> bool:
    """There are no plugins here."""
    return True


class ISerializationConfig:
    """What a plan is written with."""

    def __init__(self) -> None:
        self.flags = 0

    def set_flag(self, flag: Any) -> bool:
        self.flags |= 1 << int(flag)
        return True

    def clear_flag(self, flag: Any) -> bool:
        self.flags &= ~(1 << int(flag))
        return True

    def get_flag(self, flag: Any) -> bool:
        return bool(self.flags >> int(flag) & 1)


class Runtime:
    """Reads plans."""

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger
        self.max_threads = 1
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if fault("DESERIALIZE") == "none":
            tell(self.logger, ILogger.ERROR, "the engine plan file is not compatible with this device")
            return None
        try:
            return ICudaEngine(Plan.decode(bytes(serialized_engine)), self.logger)
        except ValueError as error:
            tell(self.logger, ILogger.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 1: {error}")
            return None


class ICudaEngine:
    """A plan, ready for contexts."""

    def __init__(self, plan: Plan, logger: ILogger) -> None:
        self._plan, self._logger = plan, logger
        self._load()
        self._tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        self._input_count = len(self._session.get_inputs())

    def _load(self) -> None:
        """The session, from the plan's model; a refit comes here again."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session = ort.InferenceSession(self._plan.model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load_model_from_string(self._plan.model).graph
        self._data_dependent: set[str] = set()
        for node in graph.node:
            if node.op_type in _DATA_DEPENDENT or self._data_dependent & set(node.input):
                self._data_dependent.update(node.output)
        self.name = graph.name
        self.num_layers = len(graph.node)

    @property
    def refittable(self) -> bool:
        return self._plan.refittable

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._plan.profiles)

    @property
    def device_memory_size_v2(self) -> int:
        return int(number("SCRATCH_MIB", 1.0) * (1 << 20))

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self.device_memory_size_v2 if profile_index < len(self._plan.profiles) else 0

    def get_tensor_name(self, index: int) -> str:
        return str(self._tensors[index].name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self._index(name) < self._input_count else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        dtype = _numpy_of(self._tensors[self._index(name)].type)
        if dtype == np.float64:
            return DataType.FLOAT
        if dtype == np.int64 and self._plan.narrow_int64:
            return DataType.INT32
        return OF_NUMPY[dtype]

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(axis if isinstance(axis, int) else -1 for axis in self._tensors[self._index(name)].shape)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_format(self, name: str) -> TensorFormat:
        return TensorFormat.LINEAR

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        shapes = self._plan.profiles[profile_index].get(name)
        return [Dims(shape) for shape in shapes or [self._tensors[self._index(name)].shape] * 3]

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        return None if fault("CONTEXT") == "none" else IExecutionContext(self, strategy)

    def create_serialization_config(self) -> ISerializationConfig:
        return ISerializationConfig()

    def serialize(self) -> IHostMemory:
        return self.serialize_with_config(ISerializationConfig())

    def serialize_with_config(self, config: ISerializationConfig) -> IHostMemory:
        keeps = version_numbers() < (10, 16) or bool(config.flags >> 2 & 1)  # INCLUDE_REFIT
        plan = Plan(
            model=self._plan.model,
            profiles=self._plan.profiles,
            refittable=self.refittable and keeps,
            narrow_int64=self._plan.narrow_int64,
        )
        return IHostMemory(plan.encode())

    def _index(self, name: str) -> int:
        return [tensor.name for tensor in self._tensors].index(name)


class IExecutionContext:
    """One engine with shapes and addresses."""

    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        self.engine = engine
        self.name = ""
        self._user_managed = strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self._scratch = (0, 0)
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._inferred: dict[tuple[tuple[int, ...], ...], dict[str, tuple[int, ...]]] = {}

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    @property
    def all_binding_shapes_specified(self) -> bool:
        return not self.infer_shapes()

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return self._refuse(f"profile {profile_index} is out of range")
        self._profile, self._shapes = profile_index, {}
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self._scratch = (memory, size)

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, self._profile)
        fits = len(shape) == len(most) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
        if not fits:
            return self._refuse(f"Static dimension mismatch: {name} {list(shape)} is not within {least} and {most}")
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.engine._index(name)
        self._addresses[name] = memory
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def infer_shapes(self) -> list[str]:
        return [name for name in self._inputs() if -1 in self.get_tensor_shape(name)]

    def get_tensor_shape(self, name: str) -> Dims:
        static = self.engine.get_tensor_shape(name)
        if self.engine.get_tensor_mode(name) is TensorIOMode.INPUT:
            return Dims(self._shapes.get(name, static))
        if -1 not in static or any(each not in self._shapes for each in self._dynamic()):
            return static
        return Dims(self._output_shapes()[name])

    def execute_async_v3(self, stream_handle: int) -> bool:
        missing = [tensor.name for tensor in self.engine._tensors if not self._addresses.get(tensor.name)]
        if self.infer_shapes() or missing or fault("EXECUTE") == "false":
            return self._refuse(f"Error Code 7: shapes of {self.infer_shapes()} or addresses of {missing} are not set")
        need = self.engine.get_device_memory_size_for_profile_v2(self._profile)
        if self._user_managed and self._scratch[1] < need:
            return self._refuse(f"Error Code 2: {need} bytes of device memory are needed, {self._scratch[1]} are set")
        work = self._work()
        enqueue(stream_handle, work)
        return True

    def _work(self) -> Callable[[], None]:
        """What a GPU would do: of these shapes and addresses, whatever is set later."""
        engine = self.engine
        inputs = {name: (self._addresses[name], tuple(self.get_tensor_shape(name))) for name in self._inputs()}
        outputs = {tensor.name: self._addresses[tensor.name] for tensor in engine._tensors[engine._input_count :]}

        stops = _runs.stops

        def run() -> None:
            time.sleep(number("EXECUTE_S"))
            if fault("EXECUTE") == "error":
                raise RuntimeError("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure")
            feeds = {name: self._read(name, *place) for name, place in inputs.items()}
            for name, array in zip(outputs, _run(engine._session, list(outputs), feeds, stops), strict=True):
                dtype = NUMPY[engine.get_tensor_dtype(name)]
                values = np.ascontiguousarray(array.astype(dtype))
                if fault("EXECUTE") == "wrong":
                    values = values + np.ones((), dtype)
                memory_at(outputs[name], values.nbytes)[:] = np.frombuffer(values.tobytes(), np.uint8)

        return run

    def _read(self, name: str, address: int, shape: tuple[int, ...]) -> NDArray[Any]:
        dtype = NUMPY[self.engine.get_tensor_dtype(name)]
        data = memory_at(address, int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)
        return data.astype(_numpy_of(self.engine._tensors[self.engine._index(name)].type))

    def _output_shapes(self) -> dict[str, tuple[int, ...]]:
        """By output: found by a run on zeros, which no shape depends on unless an operator makes it so."""
        key = tuple(tuple(self.get_tensor_shape(name)) for name in self._inputs())
        if key not in self._inferred:
            session = self.engine._session
            names = [tensor.name for tensor in self.engine._tensors[self.engine._input_count :]]
            types = {tensor.name: _numpy_of(tensor.type) for tensor in session.get_inputs()}
            zeros = {name: np.zeros(shape, types[name]) for name, shape in zip(self._inputs(), key, strict=True)}
            found = zip(names, _run(session, names, zeros, _runs.stops), strict=True)
            self._inferred[key] = {
                name: tuple(self.engine.get_tensor_shape(name)) if name in self.engine._data_dependent else each.shape
                for name, each in found
            }
        return self._inferred[key]

    def _inputs(self) -> list[str]:
        return [tensor.name for tensor in self.engine._tensors[: self.engine._input_count]]

    def _dynamic(self) -> list[str]:
        return [name for name in self._inputs() if -1 in self.engine.get_tensor_shape(name)]

    def _refuse(self, text: str) -> bool:
        tell(self.engine._logger, ILogger.ERROR, f"IExecutionContext: {text}")
        return False


def _run(session: Any, names: list[str], feeds: dict[str, NDArray[Any]], stops: int) -> list[NDArray[Any]]:
    options = ort.RunOptions()
    options.log_severity_level = 4
    with _runs.lock:
        if stops != _runs.stops:
            raise RuntimeError("the run was stopped")
        _runs.running.add(options)
    try:
        return list(session.run(names, feeds, options))
    finally:
        with _runs.lock:
            _runs.running.discard(options)


def _numpy_of(ort_type: str) -> np.dtype[Any]:
    name = ort_type.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))
