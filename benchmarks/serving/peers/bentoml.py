"""BentoML: one service, one worker."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.serving.environments import Environment
from benchmarks.serving.framing import HttpFraming, http_request
from benchmarks.serving.load import Wire, connect_tcp
from benchmarks.serving.models import Model
from benchmarks.serving.peer import Place, Running, Way, compact, encoded, numbers, program
from benchmarks.serving.processes import ServerProcess, free_port


class BentoMl:
    """JSON is its way in that needs no file on disk: numbers for the tiny model, base64 for the others."""

    target = "bentoml"
    environment = Environment(
        "bentoml", ("bentoml==1.4.39", "uvloop==0.23.0", "httptools==0.9.0", "onnxruntime==1.32.0")
    )

    def serve(self, model: Model, place: Place) -> Running:
        """Start it."""
        port = free_port()
        service = Path(program("bento_service.py"))
        command = [
            str(Path(place.python).parent / "bentoml"), "serve", f"{service.stem}:Bench", "--host", "127.0.0.1",
            "--port", str(port), "--working-dir", str(service.parent),
        ]  # fmt: skip
        env = {"BENCH_MODEL": str(model.onnx_file), "BENTOML_HOME": str(place.folder), "BENTOML_DO_NOT_TRACK": "1"}
        process = ServerProcess(command, core=place.core, log=place.log, env=env, cwd=service.parent)
        tiny = model.name == "tiny"
        body = compact({"image": numbers(model) if tiny else encoded(model)})
        path = "/numbers" if tiny else "/encoded"
        request = http_request(path, body, headers={"Content-Type": "application/json"})
        wire = Wire("http json" if tiny else "http base64", connect_tcp(port), HttpFraming(), lambda _: request)
        return Running(process, [Way(wire, lambda body: np.array(json.loads(body), np.float32))])
