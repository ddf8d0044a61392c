"""TensorRT's Python module, and the one place that knows how its versions and flavours differ.

Held against what the bindings of 10.3, 10.13, 10.16, 11.0, 11.4 and TensorRT-RTX really offer (a test reads their
recorded names and signatures). What all of them have is called directly; the rest only here:

=========================================  ===================================================================
10.x                                       11 and TensorRT-RTX
=========================================  ===================================================================
networks are typed by flags of the config  always strongly typed: precision stands in the model itself
``EXPLICIT_BATCH``                         gone (from 10 on it does nothing)
``device_memory_size``                     gone; ``get_device_memory_size_for_profile_v2`` is in both
refitted engines stay refittable           from 10.16 on only when serialised with ``INCLUDE_REFIT``
one engine for this GPU                    RTX: for every GPU it knows, unless told which
=========================================  ===================================================================
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge_agent.contract.errors import AcceleratorUnavailable, EngineBuildFailed

if TYPE_CHECKING:
    from edge_agent.runtime.gpu.survey import TensorRtLibrary

Flavour = Literal["tensorrt", "tensorrt-rtx"]
LogLine = Callable[[str, str], None]

# Members that some of the versions lack: asked for by hasattr or getattr first, and named nowhere but in this file.
OPTIONAL_NAMES = frozenset({
    "ComputeCapability.CURRENT",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IExecutionContext.is_stream_capturable",
    "SerializationFlag.INCLUDE_REFIT",
})  # fmt: skip

# By TensorRT's name; what is not here (FP8, INT4, BF16 ...) numpy cannot hold, and no signature of ours names.
_NUMPY: Mapping[str, np.dtype[Any]] = {
    "FLOAT": np.dtype("<f4"),
    "HALF": np.dtype("<f2"),
    "INT64": np.dtype("<i8"),
    "INT32": np.dtype("<i4"),
    "INT8": np.dtype("<i1"),
    "UINT8": np.dtype("<u1"),
    "BOOL": np.dtype(np.bool_),
}
_SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")


class Bindings:
    """One imported TensorRT module.

    Args:
        module: ``tensorrt`` or ``tensorrt_rtx``, or one with the same names.
    """

    def __init__(self, module: Any, flavour: Flavour) -> None:
        self.trt, self.flavour = module, flavour
        self.version_text: str = module.__version__
        self.version = version_numbers(self.version_text)

    def new_logger(self, log: LogLine) -> Any:
        """An ``ILogger`` that passes each line on.

        Args:
            log: Called from TensorRT's threads with ``error``, ``warning``, ``info`` or ``verbose``, and the line.
        """
        trt = self.trt
        names = {getattr(trt.ILogger, name): name.rpartition("_")[2].lower() for name in _SEVERITIES}

        class _Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)  # pybind11 asks for the very class, not for super()

            def log(self, severity: Any, msg: str) -> None:
                log(names.get(severity, "info"), msg)

        return _Logger()

    def network_flags(self) -> int:
        """What ``Builder.create_network`` is given: strongly typed, the precision is the model's own."""
        return 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def register_plugins(self, logger: Any) -> None:
        """Make NVIDIA's own layers known (NMS, ROI align ...), for parsing and for reading engines alike."""
        if hasattr(self.trt, "init_libnvinfer_plugins"):  # not in the lean runtimes, which have none
            self.trt.init_libnvinfer_plugins(logger, "")

    @property
    def has_timing_cache(self) -> bool:
        """Whether builds keep what kernels took; RTX compiles when an engine is first run, and measures nothing."""
        return self.flavour == "tensorrt"

    def build_for_this_gpu(self, config: Any) -> bool:
        """Have RTX build for the GPU at hand alone, which is quicker and smaller; the others do nothing else anyway.

        Needs a GPU: without one RTX refuses to build.

        Returns:
            Whether the engine will run on this kind of GPU only.
        """
        if not hasattr(config, "set_compute_capability"):
            return True
        config.num_compute_capabilities = 1
        return bool(config.set_compute_capability(self.trt.ComputeCapability.CURRENT, 0))

    def deserialise(self, runtime: Any, plan: Any) -> Any:
        """The engine in a plan's bytes; ``runtime`` is to outlive it.

        A driver must be there: the lean and dispatch runtimes crash the process without one.

        Raises:
            EngineBuildFailed: TensorRT refuses it: of another version, another GPU, or damaged.
        """
        self.register_plugins(runtime.logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineBuildFailed(
                f"{self.flavour} {self.version_text} refuses the engine; it must be built again on this machine"
            )
        return engine

    def serialise(self, engine: Any) -> Any:
        """A plan (``IHostMemory``, a buffer) of an engine, refittable where the engine is.

        Raises:
            EngineBuildFailed: TensorRT gives none.
        """
        serialization = engine.create_serialization_config()
        flags = self.trt.SerializationFlag
        if engine.refittable and hasattr(flags, "INCLUDE_REFIT"):
            serialization.set_flag(flags.INCLUDE_REFIT)
        plan = engine.serialize_with_config(serialization)
        if plan is None:
            raise EngineBuildFailed(f"{self.flavour} {self.version_text}: the engine could not be written")
        return plan

    def new_context(self, engine: Any, *, own_scratch: bool) -> Any:
        """An execution context.

        Args:
            own_scratch: Whether TensorRT allocates its scratch memory; else the caller does, :meth:`scratch_bytes`, and
                sets it with ``context.set_device_memory(address, size)``.
        Raises:
            EngineBuildFailed: There is none to be had, for want of GPU memory as a rule.
        """
        strategies = self.trt.ExecutionContextAllocationStrategy
        context = engine.create_execution_context(strategies.STATIC if own_scratch else strategies.USER_MANAGED)
        if context is None:
            raise EngineBuildFailed(
                f"{self.flavour} {self.version_text} gives no execution context; is GPU memory left?"
            )
        return context

    def scratch_bytes(self, engine: Any, profile: int) -> int:
        """Scratch memory that a context of this profile needs on the GPU."""
        return int(engine.get_device_memory_size_for_profile_v2(profile))

    def is_capturable(self, context: Any, stream_handle: int) -> bool:
        """Whether the next run may be captured into a CUDA graph; only RTX knows before it is tried."""
        return not hasattr(context, "is_stream_capturable") or bool(context.is_stream_capturable(stream_handle))

    def numpy_dtype(self, data_type: Any) -> np.dtype[Any]:
        """The numpy dtype of a ``trt.DataType``.

        Raises:
            EngineBuildFailed: Numpy has none (``FP8``, ``BF16``, ``INT4``); final.
        """
        name = str(data_type).rpartition(".")[2]
        if name not in _NUMPY:
            raise EngineBuildFailed(f"the engine has a tensor of type {name}, which numpy cannot hold", is_final=True)
        return _NUMPY[name]


def load_bindings(library: TensorRtLibrary) -> Bindings:
    """Import the library's Python module.

    Raises:
        AcceleratorUnavailable: It cannot be imported.
    """
    return import_bindings(library.module, library.flavour)


def import_bindings(module: str, flavour: Flavour) -> Bindings:
    """Import a module by its name; where it would crash, :func:`edge_agent.runtime.gpu.survey.survey` tells before.

    Raises:
        AcceleratorUnavailable: It cannot be imported.
    """
    try:
        return Bindings(importlib.import_module(module), flavour)
    except (ImportError, OSError, AttributeError) as error:  # a missing library of its own is each of these
        raise AcceleratorUnavailable(f"{module} cannot be imported: {error}") from error


def version_numbers(text: str) -> tuple[int, ...]:
    """``10.16.1.11`` as numbers; what follows (``rc1``, ``+cuda13``) is left out."""
    return tuple(int(number) for number in re.match(r"\d+(?:\.\d+)*|", text).group().split(".") if number)  # type: ignore[union-attr]
