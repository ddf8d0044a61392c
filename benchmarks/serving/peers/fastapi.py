"""An endpoint written by hand with FastAPI, on one uvicorn worker with uvloop and httptools."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.serving.environments import Environment
from benchmarks.serving.framing import HttpFraming, http_request
from benchmarks.serving.load import Wire, connect_tcp
from benchmarks.serving.models import Model
from benchmarks.serving.peer import Place, Running, Way, compact, numbers, program, read_raw
from benchmarks.serving.processes import ServerProcess, free_port


class FastApi:
    """Two forms: JSON through pydantic, as its documentation shows, and raw bytes, as the hurried write it."""

    target = "fastapi"
    environment = Environment(
        "fastapi",
        ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0", "onnxruntime==1.32.0"),
    )

    def serve(self, model: Model, place: Place) -> Running:
        """Start it."""
        port = free_port()
        command = [place.python, program("fastapi_endpoint.py"), str(model.onnx_file), str(port)]
        process = ServerProcess(command, core=place.core, log=place.log)
        raw = http_request("/bytes", model.row.tobytes(), headers={"Content-Type": "application/octet-stream"})
        text = http_request("/json", compact({"image": numbers(model)}), headers={"Content-Type": "application/json"})
        connect = connect_tcp(port)
        return Running(
            process,
            [
                Way(Wire("http raw", connect, HttpFraming(), lambda _: raw), read_raw),
                Way(
                    Wire("http json", connect, HttpFraming(), lambda _: text),
                    lambda body: np.array(json.loads(body)["probabilities"], np.float32),
                ),
            ],
        )
