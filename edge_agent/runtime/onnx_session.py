"""ONNX Runtime sessions: options, the optimised models they are made from, and whether they fit the manifest."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edge_agent.contract.errors import (
    AcceleratorUnavailable,
    DigestMismatch,
    ModelLoadFailed,
    OutOfMemory,
    PackageError,
    storage_error,
)
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.memory import give_back, is_short_of_memory
from edge_agent.runtime.optimised import WEIGHTS_FILE, OptimisedModels
from edge_agent.runtime.package import COPY_AGAIN, Package

_ORT_TYPES: Mapping[str, Datatype] = {
    "tensor(bool)": Datatype.BOOL,
    "tensor(uint8)": Datatype.UINT8,
    "tensor(uint16)": Datatype.UINT16,
    "tensor(uint32)": Datatype.UINT32,
    "tensor(uint64)": Datatype.UINT64,
    "tensor(int8)": Datatype.INT8,
    "tensor(int16)": Datatype.INT16,
    "tensor(int32)": Datatype.INT32,
    "tensor(int64)": Datatype.INT64,
    "tensor(float16)": Datatype.FP16,
    "tensor(float)": Datatype.FP32,
    "tensor(double)": Datatype.FP64,
    "tensor(string)": Datatype.BYTES,
}

# A whole model: y = Identity(x), float32[N, 1], opset 13; made by onnx.helper, which devices lack.
_SMALLEST_MODEL = base64.b64decode(
    "CAcSADpBChAKAXgSAXkiCElkZW50aXR5EgFnWhQKAXgSDwoNCAESCQoDEgFOCgIIAWIUCgF5Eg8KDQgBEgkKAxIBTgoCCAFCBAoAEA0="
)

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"

# A method of the session's options, which older runtimes lack.
_IN_MEMORY = "add_external_initializers_from_files_in_memory"
# Smaller weights stay in the optimised model itself.
_EXTERNAL_FROM_BYTES = 1024


def open_session(
    package: Package, *, variant: str, threads: int, cache: OptimisedModels | None, provider: str = CPU_PROVIDER
) -> Any:
    """An ``onnxruntime.InferenceSession`` of a variant that the package has.

    Args:
        threads: Threads within one inference.
        cache: Where optimised models are kept; one that is missing is made, one that is of no use is dropped.
        provider: Which of the runtime's execution providers runs it; others than the CPU's have no use for the cache.
    Raises:
        ModelLoadFailed: The runtime refuses the model, or the model differs from the manifest's signature.
        AcceleratorUnavailable: The runtime cannot use the provider here.
    """
    if provider != CPU_PROVIDER:
        return _open_elsewhere(_Source(package, variant, is_own=False), threads, package.manifest.signature, provider)
    signature = package.manifest.signature
    source = _Source(package, variant, is_own=cache is None or cache.owns(package))
    if cache is not None and cache.wants(package, variant):
        key = cache.key(package, variant)
        kept = cache.find(key) or cache.make(key, lambda target: _optimise(source, target))
        if kept is not None:
            options = _options(threads)
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            try:
                return _session(kept, options, signature)
            except ModelLoadFailed as error:
                cache.drop(key, str(error))
    return source.open(_options(threads), signature)


def _open_elsewhere(source: _Source, threads: int, signature: Signature, provider: str) -> Any:
    """A session that really runs on ``provider``: the runtime takes the CPU in its place with a line in its own log."""
    if provider not in ort.get_available_providers():
        offered = ", ".join(ort.get_available_providers())
        raise AcceleratorUnavailable(f"ONNX Runtime {ort.__version__} was built without {provider}; it has: {offered}")
    session = source.open(_options(threads), signature, provider=provider)
    if provider not in session.get_providers():
        raise AcceleratorUnavailable(
            f"ONNX Runtime {ort.__version__} cannot use {provider} here: are CUDA and cuDNN of its versions installed?"
        )
    return session


class _Source:
    """The model as the package has it.

    Args:
        is_own: Whether nobody but this agent writes to the package. The runtime maps weights in files of their own, and
            a mapped file that another program cuts short ends the process: those of others are read instead.
    """

    def __init__(self, package: Package, variant: str, *, is_own: bool) -> None:
        self._package, self._form, self._is_own = package, package.manifest.variants[variant], is_own
        self._path = package.path(self._form.model)

    def open(self, options: Any, signature: Signature, *, provider: str = CPU_PROVIDER) -> Any:
        """A session of it; see :func:`open_session`."""
        weights = self._add_weights(options)
        session = _session(self._path, options, signature, provider)
        del weights  # not needed any longer: the runtime has copied them
        return session

    def write_optimised(self, options: Any) -> None:
        """Write it where the options say."""
        weights = self._add_weights(options)
        _create(self._path, options)
        del weights

    def _add_weights(self, options: Any) -> list[bytes]:
        """Hand the weights over in memory where they are not to be mapped; to be held until the session is there."""
        if self._is_own or not self._form.data or not hasattr(options, _IN_MEMORY):
            return []
        names, weights = [], []
        for name in self._form.data:
            path = self._package.path(name)
            data = _read(path)
            actual = hashlib.sha256(data).hexdigest()
            expected = self._package.manifest.files[name].sha256
            if actual != expected:
                raise DigestMismatch(str(path), expected=expected, actual=actual, cure=COPY_AGAIN)
            names.append(os.path.relpath(path, self._path.parent))
            weights.append(data)
        getattr(options, _IN_MEMORY)(names, weights, [len(data) for data in weights])
        return weights


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise storage_error(error, str(path)) or PackageError(f"{path}: {error.strerror}") from error


def _options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong comes as an exception; its own log would say it twice
    # Spinning threads burnt 55 % of a CPU at 20 requests/s for 40 us of latency.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # One plan per shape of input is kept otherwise: after 64 rows on a CNN with 26 MB of weights 137 MB stayed
    # instead of 112, at the same speed. The arena stays: without it activations lie between what lives longer, and a
    # CNN asked 10,000 times held 262 MB instead of 100; what its largest batch took is given back by OnnxBackend.
    options.enable_mem_pattern = False
    return options


def run_options(*, shrink: bool = False) -> Any:
    """An ``onnxruntime.RunOptions``.

    Args:
        shrink: Give back what the arena does not need any more, at the end of the run.
    """
    options = ort.RunOptions()
    if shrink:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _optimise(source: _Source, target: Path) -> None:
    """Write the optimised form of a model under ``target``, its weights beside it."""
    options = _options(1)
    options.optimized_model_filepath = str(target)
    for name, value in (("file_name", WEIGHTS_FILE), ("min_size_in_bytes", str(_EXTERNAL_FROM_BYTES))):
        options.add_session_config_entry(f"session.optimized_model_external_initializers_{name}", value)
    source.write_optimised(options)
    give_back()  # the session was made for its file alone, and takes several times the memory of the one to come


@functools.cache
def take_own_memory() -> None:
    """Let the runtime take, once in a process, what it takes whichever model comes first (10 MiB, 5 ms).

    Else that would be counted as the first model's own.
    """
    session = ort.InferenceSession(_SMALLEST_MODEL, _options(1), providers=[CPU_PROVIDER])
    session.run(None, {"x": np.zeros((1, 1), np.float32)})


def _session(path: Path, options: Any, signature: Signature, provider: str = CPU_PROVIDER) -> Any:
    session = _create(path, options, provider)
    _compare(str(path), "input", signature.inputs, session.get_inputs())
    _compare(str(path), "output", signature.outputs, session.get_outputs())
    return session


def _create(path: Path, options: Any, provider: str = CPU_PROVIDER) -> Any:
    try:
        return ort.InferenceSession(str(path), options, providers=list(dict.fromkeys((provider, CPU_PROVIDER))))
    except Exception as error:
        # The runtime's exceptions share no base class but this one.
        if is_short_of_memory(error):
            raise OutOfMemory(f"{path}: there is no memory left to load it: {error}") from error
        raise ModelLoadFailed(f"{path}: ONNX Runtime {ort.__version__} refuses the model: {error}") from error


def _compare(path: str, side: str, specs: tuple[TensorSpec, ...], nodes: list[Any]) -> None:
    """Refuse a model that is not what the manifest says, above all one whose batch axis was fixed on export."""
    found = {node.name: node for node in nodes}
    for spec in specs:
        node = found.pop(spec.name, None)
        if node is None:
            raise ModelLoadFailed(
                f"{path}: the manifest's {side} '{spec.name}' is not in the model; it has: {sorted(found)}"
            )
        datatype = _ORT_TYPES.get(node.type)
        if datatype is not spec.datatype:
            raise ModelLoadFailed(
                f"{path}: {side} '{spec.name}' is {node.type}, the manifest says {spec.datatype.value}"
            )
        fits = len(node.shape) == len(spec.shape) and all(
            not isinstance(have, int) or have == want for have, want in zip(node.shape, spec.shape, strict=True)
        )
        # A model may leave the shape of an output open: shape inference is not complete.
        if not fits and not (side == "output" and not node.shape):
            raise ModelLoadFailed(
                f"{path}: {side} '{spec.name}' has shape {node.shape}, the manifest says {list(spec.shape)}"
            )
    if found and side == "input":
        raise ModelLoadFailed(f"{path}: the model needs inputs that the manifest lacks: {sorted(found)}")
