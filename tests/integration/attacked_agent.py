"""A real agent process with every way in open, one request for all of them, and what the process holds."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from edge_agent.contract.frame_messages import Inferred
from edge_agent.contract.frames import array_of, decode_answer
from edge_agent.contract.manifest import Batching, Overflow
from edge_agent.serving.grpc import oip_pb2 as oip
from tests.e2e.running_agent import PATIENCE_S, Agent, agent
from tests.fakes.hanging_package import make_hanging_package
from tests.fakes.packages import OUTPUT, make_package
from tests.fakes.text_package import make_text_package
from tests.integration.hostile_requests import (
    EXPECTED,
    GRPC_STATUS,
    Outcome,
    Request,
    array_of_raw,
    frame_of,
    grpc_message,
    http_body,
    read_http_answer,
)

TRANSPORTS = ("tcp", "unix", "frames", "grpc", "grpc_unix")
MAX_RUN_S = 1.0

_SAMPLE = re.compile(r"^([^#\s]\S*(?:\{.*\})?) (\S+)$", re.MULTILINE)
_SETTINGS = """state = "{state}"
[api]
port = 0
unix_socket = "{folder}/http.sock"
frames_socket = "{folder}/frames.sock"
grpc_port = 0
grpc_socket = "{folder}/grpc.sock"
max_rows = 64
max_body_mib = {body_mib}
max_pending = 16
max_connections = 48
head_timeout_s = 1
body_timeout_s = 1.5
idle_timeout_s = 20
{api}
[runtime]
models = "{folder}/models"
threads = 2
{runtime}
[report]
interval_s = 0.5
"""


@dataclasses.dataclass(frozen=True)
class Held:
    """What the agent holds for its applications; all of it goes back."""

    connections: int
    pending: int
    pending_bytes: int
    regions: int
    fds: int


class AttackedAgent:
    """The process, and how to reach it."""

    def __init__(self, folder: Path, device: Agent, patience_s: float = PATIENCE_S) -> None:
        self.folder, self.device, self._patience_s = folder, device, patience_s
        self._rest: Held | None = None

    def start(self) -> None:
        """Start it; it rests now."""
        self.device.start()
        self.addresses: dict[str, Any] = json.loads((self.device.state / "agent.json").read_text())
        self.pid = int(self.addresses["pid"])
        self.process = psutil.Process(self.pid)
        for transport in TRANSPORTS:
            self.assert_serves(transport)
        self._rest = self.held()

    @property
    def models(self) -> Path:
        """The folder that its packages lie in."""
        return self.folder / "models"

    @property
    def rss(self) -> int:
        """Bytes of its memory."""
        return int(self.process.memory_info().rss)

    def connect(self, transport: str) -> socket.socket:
        """A socket on one of its listeners."""
        if transport in ("tcp", "grpc"):
            host, port = self._host_and_port(transport)
            return socket.create_connection((host, port), timeout=self._patience_s)
        path = {"unix": "http.sock", "frames": "frames.sock", "grpc_unix": "grpc.sock"}[transport]
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.folder / path))
        connection.settimeout(self._patience_s)  # not before: where the listener's queue is full it would not wait
        return connection

    def ask_http(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        transport: str = "tcp",
    ) -> tuple[int, bytes]:
        """Status and body of one answer on a connection of its own."""
        return self._ask_http(transport, method, path, body, headers or {})[:2]

    def ask(self, transport: str, request: Request) -> Outcome:
        """What one request is answered, on a connection of its own."""
        if transport in ("tcp", "unix"):
            return self._over_http(transport, request)
        if transport == "frames":
            return self._over_frames(request)
        return self._over_grpc(transport, request)

    def assert_serves(self, transport: str = "tcp") -> None:
        """A right request gets the right answer."""
        outcome = self.ask(transport, Request())
        assert outcome.status == 200, outcome.error
        np.testing.assert_allclose(outcome.outputs[OUTPUT], EXPECTED, rtol=1e-4, atol=1e-6)

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics by their name with labels."""
        status, text = self.ask_http("GET", "/metrics")
        assert status == 200
        return {
            match[1]: float(match[2])
            for match in re.finditer(r"^([^#\s]\S*(?:\{.*\})?) (\S+)$", text.decode(), re.MULTILINE)
        }

    def counts(self, model: str = "digits") -> dict[str, int]:
        """Requests by outcome."""
        found = self.metrics()
        labels = f'model="{model}",version="1"'
        return {
            outcome: int(found[f'shoal_model_requests_total{{{labels},outcome="{outcome}"}}'])
            for outcome in ("success", "failure", "refused")
        }

    def held(self) -> Held:
        """What it holds now, this question's own connection not counted."""
        found = self.metrics()
        regions = json.loads(self.ask_http("GET", "/v2/systemsharedmemory/status")[1])
        return Held(
            int(found["shoal_connections"]) - 1,
            int(found["shoal_pending_requests"]),
            int(found["shoal_pending_bytes"]),
            len(regions),
            len(os.listdir(f"/proc/{self.pid}/fd")),  # noqa: PTH208 - a thousand names
        )

    def assert_rests(self) -> None:
        """It has given back what an attack made it take, serves on all ways, and complains of no mistake of its own."""
        assert self._rest is not None
        self.until(self._is_at_rest, lambda: f"{self.held()} to become {self._rest}")
        for transport in TRANSPORTS:
            self.assert_serves(transport)
        self.assert_no_mistake()

    def assert_no_mistake(self) -> None:
        """Its log holds no traceback, and no error of its own."""
        log = self.device.log
        for sign in ("Traceback", "internal error", "exception in", "never retrieved", "Fatal"):
            at = log.find(sign)
            assert at < 0, log[max(0, at - 500) : at + 3000]

    def until(self, true: Callable[[], bool], what: Callable[[], str]) -> None:
        """Wait until it is."""
        end = time.monotonic() + self._patience_s
        while not true():
            assert time.monotonic() < end, f"waited in vain for {what()}"
            time.sleep(0.05)

    def _is_at_rest(self) -> bool:
        rest = self._rest
        try:
            now = self.held()
        except (AssertionError, ConnectionError):  # so many are still there that this one is one too many
            return False
        # A few files more: SQLite opens some when it first needs them, a scan of the models' folder may be under way.
        return rest is not None and dataclasses.replace(now, fds=rest.fds) == rest and now.fds <= rest.fds + 3

    def _host_and_port(self, transport: str) -> tuple[str, int]:
        address = self.device.address if transport == "tcp" else str(self.addresses["grpc"])
        host, _, port = address.rpartition(":")
        return host, int(port)

    def _ask_http(
        self, transport: str, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes, int | None]:
        with contextlib.closing(http.client.HTTPConnection("localhost", timeout=self._patience_s)) as connection:
            connection.sock = self.connect(transport)
            connection.request(method, path, body, dict(headers))
            with connection.getresponse() as found:
                length = found.headers.get("inference-header-content-length")
                return found.status, found.read(), int(length) if length is not None else None

    def _over_http(self, transport: str, request: Request) -> Outcome:
        head, raw = http_body(request)
        version = f"/versions/{request.version}" if request.version else ""
        status, body, length = self._ask_http(
            transport,
            "POST",
            f"/v2/models/{request.model}{version}/infer",
            head + raw,
            {"Inference-Header-Content-Length": str(len(head))},
        )
        if status != 200:
            return Outcome(status, json.loads(body)["error"])
        return Outcome(200, outputs=read_http_answer(body, length))

    def _over_frames(self, request: Request) -> Outcome:
        with self.connect("frames") as connection, connection.makefile("rb") as reader:
            with contextlib.suppress(BrokenPipeError):  # what is too large is refused before it is read
                connection.sendall(frame_of(request))
            size = reader.read(4)
            told = decode_answer(size + reader.read(int.from_bytes(size, "little")))
        if isinstance(told, Inferred):
            return Outcome(200, outputs={each.name: array_of(each) for each in told.outputs if not each.region})
        return Outcome(getattr(told, "status", 0), getattr(told, "error", ""))

    def _over_grpc(self, transport: str, request: Request) -> Outcome:
        target = f"unix:{self.folder}/grpc.sock" if transport == "grpc_unix" else str(self.addresses["grpc"])
        # Channels to one address share a connection unless they are told not to.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(target, options) as channel:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=oip.ModelInferRequest.SerializeToString,
                response_deserializer=oip.ModelInferResponse.FromString,
            )
            try:
                found = call(grpc_message(request), timeout=self._patience_s)
            except grpc.RpcError as error:
                return Outcome(GRPC_STATUS.get(error.code(), 0), error.details() or str(error.code()))
        outputs = {
            tensor.name: array_of_raw(tensor.datatype, tuple(tensor.shape), raw)
            for tensor, raw in zip(found.outputs, found.raw_output_contents, strict=True)
            if "shared_memory_region" not in tensor.parameters
        }
        return Outcome(200, outputs=outputs)


def make_models(folder: Path) -> None:
    """Four models.

    ``digits`` fails on pixels above 0.95; ``echo`` takes text; ``sleeper``, which is quick, and ``queued``, in batches,
    hang where they are asked to.
    """
    make_package(folder / "digits", fails_above=0.95)
    make_text_package(folder / "echo")
    make_hanging_package(folder / "sleeper", max_run_s=MAX_RUN_S)
    batching = Batching(max_rows=8, max_delay_us=1000, max_queue=4, overflow=Overflow.REJECT)
    make_hanging_package(folder / "queued", name="queued", batching=batching, max_run_s=MAX_RUN_S)


@contextlib.contextmanager
def attacked(
    folder: Path, *, api: str = "", runtime: str = "", body_mib: int = 1, within: Sequence[str] = ()
) -> Iterator[AttackedAgent]:
    """An agent that serves :func:`make_models` on every way in.

    Args:
        api, runtime: Further lines of these sections of its settings.
        body_mib: Largest body of a request.
        within: A command that runs it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "models").exists():
        make_models(folder / "models")
    with agent(folder / "device", within=within) as device:
        settings = _SETTINGS.format(state=device.state, folder=folder, api=api, runtime=runtime, body_mib=body_mib)
        device.settings.write_text(settings)
        one = AttackedAgent(folder, device)
        one.start()
        yield one
