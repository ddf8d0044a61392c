"""Shoal's agent as a device runs it: checks and monitoring on, a state folder, one model, every socket open."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from benchmarks.serving.framing import HttpFraming, LengthFraming
from benchmarks.serving.load import Wire, connect_tcp, connect_unix
from benchmarks.serving.models import INPUT, OUTPUT, Model
from benchmarks.serving.peer import Place, Running, Way, oip_binary, oip_json, read_oip_binary, read_oip_json
from benchmarks.serving.processes import ServerEnded, ServerProcess, free_port
from benchmarks.serving.shared_inputs import SharedInputs
from edge_agent.contract.frame_messages import Infer, Inferred
from edge_agent.contract.frames import array_of, decode_answer, encode_tensors


class Shoal:
    """HTTP on TCP and on a unix socket, frames, and, for large inputs, shared memory."""

    target = "shoal"
    environment = None

    def serve(self, model: Model, place: Place) -> Running:
        """Install the model and start the agent."""
        # Unix sockets have short paths: about 100 characters.
        sockets = Path(tempfile.mkdtemp(prefix="bench-"))
        unix, frames, port = sockets / "http.sock", sockets / "frames.sock", free_port()
        config = place.folder / "agent.toml"
        config.write_text(
            f'state = "{place.folder / "state"}"\n[api]\nport = {port}\nunix_socket = "{unix}"\n'
            f'frames_socket = "{frames}"\nbusy_poll_us = 200\n'  # the load has a processor of its own
        )
        agent = [place.python, "-m", "edge_agent.cli"]
        done = subprocess.run(
            [*agent, "install", str(model.folder), "--config", str(config)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ServerEnded(f"install: {' | '.join(done.stderr.strip().splitlines()[-2:])}")
        command = [*agent, "run", "--config", str(config), "--log-level", "warning"]
        process = ServerProcess(command, core=place.core, log=place.log)
        path = f"/v2/models/{model.name}/infer"
        binary, text, frame = oip_binary(model, path), oip_json(model, path), _frame(model)
        tcp, local = connect_tcp(port), connect_unix(str(unix))
        ways = [
            Way(Wire("http binary", tcp, HttpFraming(), lambda _: binary), read_oip_binary),
            Way(Wire("http json", tcp, HttpFraming(), lambda _: text), read_oip_json),
            Way(Wire("unix binary", local, HttpFraming(), lambda _: binary), read_oip_binary),
            Way(Wire("frames", connect_unix(str(frames)), LengthFraming(), lambda _: frame), _read_frame),
        ]
        shared = SharedInputs(local, model)
        if model.name == "image":
            ways.append(shared.way())

        def close() -> None:
            shared.close()
            shutil.rmtree(sockets, ignore_errors=True)

        return Running(process, ways, close)


def _frame(model: Model) -> bytes:
    message = Infer(v=1, id=1, model=model.name, inputs=[])
    return b"".join(bytes(part) for part in encode_tensors(message, {INPUT: model.row}))


def _read_frame(frame: bytes) -> NDArray[Any]:
    answer = decode_answer(frame)
    if isinstance(answer, Inferred):
        return next(array_of(values) for values in answer.outputs if values.name == OUTPUT)
    raise ValueError(f"no inference: {answer}")
