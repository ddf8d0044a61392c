"""The steps of a survey, done in a process of their own: a line of JSON asks for one, a line of JSON answers.

========  ====================  ===========================================================
step      further fields        answer
========  ====================  ===========================================================
gpu       library               the fields of :class:`edge_agent.runtime.gpu.device_memory.Gpu`
module    library, module       version
memory    library, provider,    nothing: the GPU was opened, used, and let go of
          gpu
========  ====================  ===========================================================

A step that fails answers with ``reason`` alone.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import json
import os
import re
import signal
import sys
from typing import Any

from edge_agent.contract.errors import DeviceError
from edge_agent.runtime.gpu.device_memory import Gpu
from edge_agent.runtime.gpu.driver import probe
from edge_agent.runtime.gpu.providers import open_memory

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def main() -> None:
    """Answer until the input ends."""
    _end_with_parent()
    # Libraries write to standard output when they are loaded: the answers go another way.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do one step."""
    try:
        if request["step"] == "gpu":
            return dataclasses.asdict(probe(request["library"]))
        if request["step"] == "module":
            return _version_of(request["module"], request["library"])
        return _try_memory(request)
    except DeviceError as error:
        return {"reason": str(error)}


def _version_of(name: str, library: str) -> dict[str, Any]:
    probe(library)  # again in each process: the lean runtime crashes where the driver was not initialised
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return {"reason": f"{name} cannot be imported: {error}"}
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises
        return {"reason": f"{name} cannot be imported: {type(error).__name__}: {error}"}
    version = re.match(r"\d+(\.\d+)*", str(getattr(module, "__version__", "")))
    if version is None or not hasattr(module, "Runtime"):
        return {"reason": f"{name} ({getattr(module, '__file__', 'no file')}) is no TensorRT"}
    return {"version": [int(part) for part in version[0].split(".")]}


def _try_memory(request: dict[str, Any]) -> dict[str, Any]:
    described = request["gpu"]
    for pair in ("compute_capability", "driver_version"):
        described[pair] = tuple(described[pair])
    memory = open_memory(request["provider"], Gpu(**described), library=request["library"])
    try:
        buffer, stream = memory.allocate(64), memory.new_stream()
        buffer.host[:] = 7
        stream.upload(buffer, 64)
        stream.download(buffer, 64)
        stream.wait()
        came_back = bool((buffer.host == 7).all())
        buffer.close()
        stream.close()
    except RuntimeError as error:
        return {"reason": f"{request['provider']} opens the GPU, but copies fail: {error}"}
    finally:
        memory.close()
    return {} if came_back else {"reason": f"{request['provider']}: what was copied to the GPU came back changed"}


def _end_with_parent() -> None:
    """A step that hangs must not outlive the agent."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_DEATH_SIGNAL, signal.SIGKILL)
