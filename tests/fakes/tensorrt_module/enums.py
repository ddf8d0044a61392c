"""Enumerations and small values with TensorRT's names and numbers."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np

from tests.fakes.tensorrt_module.faults import version_numbers


class _Enum(enum.Enum):
    """As pybind11 makes them: an integer only when asked."""

    def __int__(self) -> int:
        return int(self.value)


def _made(name: str, members: dict[str, int]) -> Any:
    make: Any = _Enum
    return make(name, members)


class DataType(_Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8
    INT4 = 9


class TensorIOMode(_Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(_Enum):
    DEVICE = 0
    HOST = 1


class TensorFormat(_Enum):
    LINEAR = 0
    CHW2 = 1
    HWC8 = 2


class ExecutionContextAllocationStrategy(_Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class MemoryPoolType(_Enum):
    WORKSPACE = 0
    DLA_MANAGED_SRAM = 1
    DLA_LOCAL_DRAM = 2
    DLA_GLOBAL_DRAM = 3
    TACTIC_DRAM = 4
    TACTIC_SHARED_MEMORY = 5


class ProfilingVerbosity(_Enum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class LayerInformationFormat(_Enum):
    ONELINE = 0
    JSON = 1


class HardwareCompatibilityLevel(_Enum):
    NONE = 0
    AMPERE_PLUS = 1


class LayerType(_Enum):
    QUANTIZE = 32
    DEQUANTIZE = 33
    ELEMENTWISE = 9


class OnnxParserFlag(_Enum):
    NATIVE_INSTANCENORM = 0


class PreviewFeature(_Enum):
    ALIASED_PLUGIN_IO_10_03 = 0 if version_numbers() >= (11,) else 1


_FLAGS_OF_10 = {
    "DEBUG": 2,
    "GPU_FALLBACK": 3,
    "REFIT": 4,
    "DISABLE_TIMING_CACHE": 5,
    "TF32": 6,
    "SPARSE_WEIGHTS": 7,
    "DIRECT_IO": 11,
    "VERSION_COMPATIBLE": 13,
    "STRIP_PLAN": 19,
    "REFIT_IDENTICAL": 20,
}
_FLAGS_OF_11 = {**_FLAGS_OF_10, "VERSION_COMPATIBLE": 12, "STRIP_PLAN": 18, "REFIT_IDENTICAL": 19}
_NETWORK_OF_10 = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
_SERIALIZATION = {"EXCLUDE_WEIGHTS": 0, "EXCLUDE_LEAN_RUNTIME": 1}

_is_11 = version_numbers() >= (11,)
_keeps_refit = version_numbers() >= (10, 16)
# Whose members depend on the version, as the real ones do.
BuilderFlag: Any = _made("BuilderFlag", _FLAGS_OF_11 if _is_11 else _FLAGS_OF_10)
NetworkDefinitionCreationFlag: Any = _made(
    "NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 0} if _is_11 else _NETWORK_OF_10
)
SerializationFlag: Any = _made(
    "SerializationFlag", {**_SERIALIZATION, **({"INCLUDE_REFIT": 2} if _keeps_refit else {})}
)

NUMPY: dict[DataType, np.dtype[Any]] = {
    DataType.FLOAT: np.dtype(np.float32),
    DataType.HALF: np.dtype(np.float16),
    DataType.INT8: np.dtype(np.int8),
    DataType.INT32: np.dtype(np.int32),
    DataType.BOOL: np.dtype(np.bool_),
    DataType.UINT8: np.dtype(np.uint8),
    DataType.INT64: np.dtype(np.int64),
}
OF_NUMPY: dict[np.dtype[Any], DataType] = {dtype: data_type for data_type, dtype in NUMPY.items()}


class Dims(tuple[int, ...]):
    """Axis sizes; -1 is not known yet."""

    __slots__ = ()
    MAX_DIMS = 8


class IHostMemory(bytes):
    """Bytes that TensorRT has made."""

    __slots__ = ()

    @property
    def nbytes(self) -> int:
        return len(self)

    @property
    def dtype(self) -> DataType:
        return DataType.INT8


class _Severity(_Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    """What is told to the program."""

    Severity = _Severity
    INTERNAL_ERROR = _Severity.INTERNAL_ERROR
    ERROR = _Severity.ERROR
    WARNING = _Severity.WARNING
    INFO = _Severity.INFO
    VERBOSE = _Severity.VERBOSE

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError  # the real one's is pure virtual


def tell(logger: ILogger, severity: _Severity, text: str) -> None:
    """Let a program's logger know."""
    logger.log(severity, text)


class Logger(ILogger):
    """One that prints what is at least so severe."""

    def __init__(self, min_severity: Any = ILogger.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity

    def log(self, severity: Any, msg: str) -> None:
        if int(severity) <= int(self.min_severity):
            print(f"[fake TensorRT] {severity.name}: {msg}")  # noqa: T201 - what the real one does
