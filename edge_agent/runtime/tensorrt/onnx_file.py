"""ONNX files as protobuf messages, in the worker process alone: the agent itself never imports ``onnx``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_agent.contract.errors import AcceleratorUnavailable, EngineBuildFailed

# A protobuf message has at most 2 GiB; the checks below add outputs to it.
LARGEST_BYTES = 1900 << 20


def load_model(file: Path, *, weights: bool) -> Any:
    """The ``onnx.ModelProto`` in a file.

    Args:
        weights: Whether weights in files of their own are read too.
    Raises:
        AcceleratorUnavailable: The package ``onnx`` is not installed.
        EngineBuildFailed: The file is no ONNX model, which is final, or cannot be read.
    """
    try:
        import onnx
    except ImportError as error:
        raise AcceleratorUnavailable(f"the package onnx is missing, install shoal-agent[tensorrt]: {error}") from error
    try:
        return onnx.load(str(file), load_external_data=weights)
    except OSError as error:
        raise EngineBuildFailed(f"{file}: cannot be read: {error}") from error
    except MemoryError:
        raise
    except Exception as error:
        # protobuf and onnx have an exception of their own for each way in which a file can be wrong.
        raise EngineBuildFailed(f"{file}: is no ONNX model: {error}", is_final=True) from error
