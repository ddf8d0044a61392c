"""A bare ASGI callable on uvicorn: no peer, but what remains when nothing is left to leave out."""

from __future__ import annotations

from benchmarks.serving.framing import HttpFraming, http_request
from benchmarks.serving.load import Wire, connect_tcp
from benchmarks.serving.models import Model
from benchmarks.serving.peer import Place, Running, Way, program, read_raw
from benchmarks.serving.processes import ServerProcess, free_port


class AsgiStub:
    """See the program of that name."""

    target = "asgi stub"
    environment = None  # uvicorn and uvloop are here already

    def serve(self, model: Model, place: Place) -> Running:
        """Start it."""
        port = free_port()
        command = [place.python, program("asgi_stub.py"), str(model.onnx_file), str(port)]
        process = ServerProcess(command, core=place.core, log=place.log)
        request = http_request("/", model.row.tobytes())
        wire = Wire("http raw", connect_tcp(port), HttpFraming(), lambda _: request)
        return Running(process, [Way(wire, read_raw)])
