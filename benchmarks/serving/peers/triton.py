"""Triton: the server binary that the nvidia-pytriton wheel brings, with its Python backend around ONNX Runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.serving.environments import Environment
from benchmarks.serving.framing import HttpFraming
from benchmarks.serving.load import Wire, connect_tcp
from benchmarks.serving.models import CLASSES, INPUT, OUTPUT, Model
from benchmarks.serving.peer import Place, Running, Way, oip_binary, oip_json, program, read_oip_binary, read_oip_json
from benchmarks.serving.processes import ServerProcess, free_port
from benchmarks.serving.shared_inputs import SharedInputs

_CONFIG = """name: "{name}"
backend: "python"
max_batch_size: 16
input [ {{ name: "{input}" data_type: TYPE_FP32 dims: {dims} }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {classes} ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""


class Triton:
    """HTTP with binary tensors, its own fastest form over HTTP, JSON, and shared memory for large inputs.

    Args:
        batching: Requests that wait are put together, which is off by default; it takes several HTTP threads to pay.
    """

    # numpy 1: its Python backend reads the arrays of numpy 2 wrongly. The wheel without what it asks for: its clients
    # and its own Python API are not used here.
    environment = Environment(
        "triton",
        ("numpy==1.26.4", "flatbuffers==25.12.19", "protobuf==7.36.2", "packaging==26.3", "sympy==1.14.0"),
        alone=("onnxruntime==1.32.0", "nvidia-pytriton==0.7.0"),
        pythons=("3.11", "3.12", "3.10"),
    )

    def __init__(self, *, batching: bool = False) -> None:
        self._batching = batching
        self.target = "triton (python, batching)" if batching else "triton (python backend)"

    def serve(self, model: Model, place: Place) -> Running:
        """Start it."""
        http_port = free_port()
        packages = next((Path(place.python).parent.parent / "lib").glob("python3*/site-packages"))
        root = packages / "pytriton" / "tritonserver"
        version = packages.parent.name.removeprefix("python")
        self._lay_out(model, place.folder / "models")
        backends = place.folder / "backends"
        shutil.copytree(root / "backends", backends)
        stub = backends / "python" / "triton_python_backend_stub"
        shutil.copy(root / "python_backend_stubs" / version / stub.name, stub)
        stub.chmod(0o755)
        binary = root / "bin" / "tritonserver"
        threads = 8 if self._batching else 1
        binary.chmod(0o755)
        command = [
            str(binary), f"--model-repository={place.folder / 'models'}", f"--backend-directory={backends}",
            "--http-address=127.0.0.1", f"--http-port={http_port}", f"--http-thread-count={threads}",
            "--allow-grpc=false", "--allow-metrics=false", "--allow-sagemaker=false", "--allow-vertex-ai=false",
        ]  # fmt: skip
        env = {
            "PATH": f"{Path(place.python).parent}:/usr/bin:/bin",
            "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
            "PYTHONPATH": str(packages),
        }
        process = ServerProcess(command, core=place.core, log=place.log, env=env)
        path = f"/v2/models/{model.name}/infer"
        binary_request, json_request = oip_binary(model, path), oip_json(model, path)
        connect = connect_tcp(http_port)
        ways = [
            Way(Wire("http binary", connect, HttpFraming(), lambda _: binary_request), read_oip_binary),
            Way(Wire("http json", connect, HttpFraming(), lambda _: json_request), read_oip_json),
        ]
        shared = SharedInputs(connect, model)
        if model.name == "image":
            ways.append(shared.way())
        return Running(process, ways, shared.close)

    def _lay_out(self, model: Model, repository: Path) -> None:
        folder = repository / model.name / "1"
        folder.mkdir(parents=True)
        shutil.copy(model.onnx_file, folder / "model.onnx")
        shutil.copy(program("triton_model.py"), folder / "model.py")
        config = _CONFIG.format(name=model.name, input=INPUT, output=OUTPUT, dims=list(model.shape), classes=CLASSES)
        (folder.parent / "config.pbtxt").write_text(config + ("dynamic_batching { }\n" if self._batching else ""))
