"""Raw sockets that speak frames, well or badly."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from edge_agent.contract import frames
from edge_agent.contract.frame_messages import VERSION, Answer, Failure, Infer
from tests.fakes.frames_device import FramesDevice, serving_frames


class Raw:
    """A client that sends whatever it is told."""

    def __init__(self, path: str, *, timeout_s: float = 20.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        self.socket.connect(path)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_map(self, **members: Any) -> None:
        body = msgpack.packb(members)
        self.send(len(body).to_bytes(4, "little") + body)

    def infer(self, number: int, image: Any, *, model: str = "digits", **members: Any) -> None:
        message = Infer(v=VERSION, id=number, model=model, inputs=[], **members)
        self.send(b"".join(frames.encode_tensors(message, {"image": image})))

    def answer(self) -> Answer:
        return frames.decode_answer(self._exactly(4) + self._exactly(self._length))

    def failure(self) -> Failure:
        found = self.answer()
        assert isinstance(found, Failure)
        return found

    def is_closed(self) -> bool:
        """Whether the agent closes the connection, with nothing more to say."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise ConnectionResetError(f"closed after {len(data)} of {size} bytes")
            data += piece
        self._length = int.from_bytes(data[:4], "little") if size == 4 else 0
        return data


Connect = Callable[[FramesDevice], Raw]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Opens raw connections, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def open_one(device: FramesDevice) -> Raw:
            raw = Raw(device.path)
            stack.callback(raw.close)
            return raw

        yield open_one


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FramesDevice]:
    """One for all tests of a module that leave its models as they are."""
    with serving_frames(tmp_path_factory.mktemp("frames")) as device:
        yield device


@pytest.fixture
def device(tmp_path: Path) -> Iterator[FramesDevice]:
    """A device of the test's own."""
    with serving_frames(tmp_path) as device:
        yield device
