"""Inputs in system shared memory (POSIX), as the Open Inference Protocol's extension has it, over HTTP."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

from benchmarks.serving.framing import HttpFraming, http_request
from benchmarks.serving.load import Connect, Wire, ask_once
from benchmarks.serving.models import INPUT, OUTPUT, Model
from benchmarks.serving.peer import Way, compact, read_oip_binary

_FOLDER = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory


class SharedInputs:
    """One region per connection, made and registered when the connection is first used.

    Args:
        connect: Opens HTTP connections to the server.
    """

    def __init__(self, connect: Connect, model: Model) -> None:
        self._connect, self._model, self._bytes = connect, model, model.row.tobytes()
        self._regions: dict[int, tuple[Path, mmap.mmap]] = {}

    def way(self) -> Way:
        """To ask by it: the input is written to shared memory before each request, within the time measured."""
        wire = Wire("shm over http", self._connect, HttpFraming(), self._request, self._write)
        return Way(wire, read_oip_binary)

    def close(self) -> None:
        """Remove the regions; the server has ended."""
        for path, region in self._regions.values():
            region.close()
            path.unlink(missing_ok=True)

    def _write(self, index: int) -> None:
        self._regions[index][1][:] = self._bytes

    def _request(self, index: int) -> bytes:
        name = f"bench-{os.getpid()}-{id(self)}-{index}"
        if index not in self._regions:
            path = _FOLDER / name
            with path.open("w+b") as file:
                file.truncate(len(self._bytes))
                self._regions[index] = path, mmap.mmap(file.fileno(), len(self._bytes))
            told = compact({"key": f"/{name}", "offset": 0, "byte_size": len(self._bytes)})
            self._ask(http_request(f"/v2/systemsharedmemory/region/{name}/register", told))
        tensor = {
            "name": INPUT, "datatype": "FP32", "shape": list(self._model.row.shape),
            "parameters": {"shared_memory_region": name, "shared_memory_byte_size": len(self._bytes)},
        }  # fmt: skip
        wanted = {"name": OUTPUT, "parameters": {"binary_data": True}}
        head = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return http_request(f"/v2/models/{self._model.name}/infer", head, headers=headers)

    def _ask(self, request: bytes) -> None:
        ask_once(Wire("register", self._connect, HttpFraming(), lambda _: request))
