"""LitServe: one API server, one worker process."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.serving.environments import Environment
from benchmarks.serving.framing import HttpFraming, http_request
from benchmarks.serving.load import Wire, connect_tcp
from benchmarks.serving.models import Model
from benchmarks.serving.peer import Place, Running, Way, compact, encoded, numbers, program
from benchmarks.serving.processes import ServerProcess, free_port


class LitServe:
    """JSON is its way in: numbers for the tiny model, base64 for the others, which is faster there."""

    target = "litserve"
    environment = Environment(
        "litserve", ("litserve==0.2.19", "uvloop==0.23.0", "httptools==0.9.0", "onnxruntime==1.32.0")
    )

    def serve(self, model: Model, place: Place) -> Running:
        """Start it."""
        port = free_port()
        command = [place.python, program("litserve_api.py"), str(model.onnx_file), str(port)]
        process = ServerProcess(command, core=place.core, log=place.log)
        tiny = model.name == "tiny"
        body = compact({"image": numbers(model) if tiny else encoded(model)})
        request = http_request("/predict", body, headers={"Content-Type": "application/json"})
        wire = Wire("http json" if tiny else "http base64", connect_tcp(port), HttpFraming(), lambda _: request)
        return Running(process, [Way(wire, lambda body: np.array(json.loads(body)["probabilities"], np.float32))])
