"""MLServer with a runtime of its own, in one process (parallel workers off, which only pay for several cores)."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.serving.environments import Environment
from benchmarks.serving.framing import HttpFraming, http_request
from benchmarks.serving.load import Wire, connect_tcp
from benchmarks.serving.models import INPUT, Model
from benchmarks.serving.peer import Place, Running, Way, compact, encoded, oip_json, program, read_oip_json
from benchmarks.serving.processes import ServerProcess, free_port


class MlServer:
    """Its REST knows no binary tensors: JSON numbers for the tiny model, base64 for the others."""

    target = "mlserver"
    environment = Environment("mlserver", ("mlserver==1.7.1", "onnxruntime==1.32.0"))

    def serve(self, model: Model, place: Place) -> Running:
        """Start it."""
        port = free_port()
        (place.folder / "settings.json").write_text(
            json.dumps(
                {
                    "debug": False, "host": "127.0.0.1", "http_port": port, "grpc_port": free_port(),
                    "metrics_port": free_port(), "metrics_dir": str(place.folder), "parallel_workers": 0,
                    "gzip_enabled": False,
                }
            )
        )  # fmt: skip
        settings = {
            "name": model.name,
            "implementation": "mlserver_runtime.OnnxModel",
            "parameters": {"uri": str(model.onnx_file)},
        }
        (place.folder / "model-settings.json").write_text(json.dumps(settings))
        command = [str(Path(place.python).parent / "mlserver"), "start", str(place.folder)]
        env = {"PYTHONPATH": str(Path(program("")))}
        process = ServerProcess(command, core=place.core, log=place.log, env=env)
        path = f"/v2/models/{model.name}/infer"
        tiny = model.name == "tiny"
        request = oip_json(model, path) if tiny else _base64(model, path)
        wire = Wire("http json" if tiny else "http base64", connect_tcp(port), HttpFraming(), lambda _: request)
        return Running(process, [Way(wire, read_oip_json)])


def _base64(model: Model, path: str) -> bytes:
    tensor = {
        "name": INPUT, "datatype": "BYTES", "shape": [1], "data": [encoded(model)],
        "parameters": {"content_type": "base64"},
    }  # fmt: skip
    return http_request(path, compact({"inputs": [tensor]}), headers={"Content-Type": "application/json"})
