"""A stand-in for TensorRT's Python module: its names, with ONNX Runtime inside, on memory that stands for a GPU's.

It needs neither GPU nor driver: device addresses are those of :mod:`tests.fakes.host_memory`, or of a stub driver. It
is given to our code by its name, ``tests.fakes.tensorrt_module``, in subprocesses as well; :mod:`.faults` lists what it
can do wrong. Its names and arguments are held against the real bindings', as ours are.
"""

from __future__ import annotations

from tests.fakes.tensorrt_module.building import (
    Builder,
    IBuilderConfig,
    ILayer,
    INetworkDefinition,
    IOptimizationProfile,
    IProgressMonitor,
    ITensor,
    ITimingCache,
    OnnxParser,
    ParserError,
)
from tests.fakes.tensorrt_module.enums import (
    BuilderFlag,
    DataType,
    Dims,
    ExecutionContextAllocationStrategy,
    HardwareCompatibilityLevel,
    IHostMemory,
    ILogger,
    LayerInformationFormat,
    LayerType,
    Logger,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    OnnxParserFlag,
    PreviewFeature,
    ProfilingVerbosity,
    SerializationFlag,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
)
from tests.fakes.tensorrt_module.faults import version
from tests.fakes.tensorrt_module.refitting import OnnxParserRefitter, Refitter
from tests.fakes.tensorrt_module.running import (
    ICudaEngine,
    IExecutionContext,
    ISerializationConfig,
    Runtime,
    init_libnvinfer_plugins,
)

__version__ = version()

__all__ = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "Dims",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "ISerializationConfig",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "LayerType",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "OnnxParserFlag",
    "OnnxParserRefitter",
    "ParserError",
    "PreviewFeature",
    "ProfilingVerbosity",
    "Refitter",
    "Runtime",
    "SerializationFlag",
    "TensorFormat",
    "TensorIOMode",
    "TensorLocation",
    "init_libnvinfer_plugins",
]
