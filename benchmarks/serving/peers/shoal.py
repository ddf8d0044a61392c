"""Shoal's agent as a device runs it: checks and monitoring on, a state folder, one model installed."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from benchmarks.serving.framing import HttpFraming
from benchmarks.serving.load import Wire, connect_tcp, connect_unix
from benchmarks.serving.models import Model
from benchmarks.serving.peer import Place, Running, Way, oip_binary, oip_json, read_oip_binary, read_oip_json
from benchmarks.serving.processes import ServerEnded, ServerProcess, free_port


class Shoal:
    """One agent per transport, so that each figure is of that transport alone.

    Args:
        transport: One of TRANSPORTS.
    """

    TRANSPORTS = ("http", "unix")
    target = "shoal"
    environment = None

    def __init__(self, transport: str) -> None:
        self._transport = transport

    def serve(self, model: Model, place: Place) -> Running:
        """Install the model and start the agent."""
        # Unix sockets have short paths: about 100 characters.
        sockets = Path(tempfile.mkdtemp(prefix="bench-"))
        unix, port = sockets / "http.sock", free_port()
        config = place.folder / "agent.toml"
        lines = [f'state = "{place.folder / "state"}"', "[api]", f"port = {port}"]
        if self._transport == "unix":
            lines.append(f'unix_socket = "{unix}"')
        config.write_text("\n".join(lines) + "\n")
        agent = [place.python, "-m", "edge_agent.cli"]
        done = subprocess.run(
            [*agent, "install", str(model.folder), "--config", str(config)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ServerEnded(f"install: {' | '.join(done.stderr.strip().splitlines()[-2:])}")
        command = [*agent, "run", "--config", str(config), "--log-level", "warning"]
        process = ServerProcess(command, core=place.core, log=place.log)
        connect = connect_unix(str(unix)) if self._transport == "unix" else connect_tcp(port)
        path = f"/v2/models/{model.name}/infer"
        binary_request, json_request = oip_binary(model, path), oip_json(model, path)
        name = self._transport
        return Running(
            process,
            [
                Way(Wire(f"{name} binary", connect, HttpFraming(), lambda _: binary_request), read_oip_binary),
                Way(Wire(f"{name} json", connect, HttpFraming(), lambda _: json_request), read_oip_json),
            ],
        )
