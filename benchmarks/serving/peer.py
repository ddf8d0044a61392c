"""What every server under test offers the benchmark: a process that answers, and the ways to ask it."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.environments import Environment
from benchmarks.serving.framing import http_request
from benchmarks.serving.load import Wire, ask_once
from benchmarks.serving.models import INPUT, OUTPUT, Model
from benchmarks.serving.processes import ServerProcess


@dataclasses.dataclass(frozen=True)
class Way:
    """One transport of one server.

    Args:
        read: The probabilities in the body of an answer.
    """

    wire: Wire
    read: Callable[[bytes], NDArray[Any]]

    def is_right(self, model: Model) -> bool:
        """Whether the server answers as the model does.

        Raises:
            OSError, ValueError: It does not answer, or refuses.
        """
        return model.is_right(self.read(ask_once(self.wire)))


@dataclasses.dataclass
class Running:
    """A server that is starting, and the ways to ask it."""

    process: ServerProcess
    ways: Sequence[Way]
    close: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a server may put things.

    Args:
        python: The interpreter of its environment.
        folder: An empty folder of its own.
        core: Where it runs.
    """

    python: str
    folder: Path
    core: int

    @property
    def log(self) -> Path:
        """Takes what the server prints."""
        return self.folder / "log.txt"


class Peer(Protocol):
    """One server under test."""

    @property
    def target(self) -> str:
        """Its name in the table."""

    @property
    def environment(self) -> Environment | None:
        """What it needs installed; None runs on this very interpreter."""

    def serve(self, model: Model, place: Place) -> Running:
        """Start it with this model alone."""


def program(name: str) -> str:
    """The path of a program that runs in a server's own environment."""
    return str(Path(__file__).parent / "programs" / name)


def oip_binary(model: Model, path: str) -> bytes:
    """A request of the Open Inference Protocol with binary tensors both ways."""
    size = model.row.nbytes
    head = json.dumps(
        {
            "inputs": [_described(model, parameters={"binary_data_size": size})],
            "outputs": [{"name": OUTPUT, "parameters": {"binary_data": True}}],
        },
        separators=(",", ":"),
    ).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return http_request(path, head + model.row.tobytes(), headers=headers)


def oip_json(model: Model, path: str) -> bytes:
    """The same with JSON both ways."""
    body = {"inputs": [_described(model, data=numbers(model))]}
    return http_request(path, compact(body), headers={"Content-Type": "application/json"})


def read_oip_binary(body: bytes) -> NDArray[Any]:
    """The probabilities that follow the JSON."""
    return np.frombuffer(body[-40:], np.float32)


def read_oip_json(body: bytes) -> NDArray[Any]:
    """The probabilities in the JSON."""
    return np.array(json.loads(body)["outputs"][0]["data"], np.float32)


def read_raw(body: bytes) -> NDArray[Any]:
    """The body is the probabilities."""
    return np.frombuffer(body, np.float32)


def numbers(model: Model) -> list[float]:
    """The input as JSON has it, at the three digits that it was rounded to."""
    return [round(float(value), 3) for value in model.row.ravel()]


def encoded(model: Model) -> str:
    """The input in base64, for servers whose JSON is the only way in."""
    return base64.b64encode(model.row.tobytes()).decode()


def compact(document: object) -> bytes:
    """JSON without blanks."""
    return json.dumps(document, separators=(",", ":")).encode()


def _described(model: Model, **more: object) -> dict[str, object]:
    return {"name": INPUT, "datatype": "FP32", "shape": list(model.row.shape), **more}
