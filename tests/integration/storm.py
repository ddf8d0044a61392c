"""A storm of valid, mutated and random traffic on every way into an agent, from one seed."""

from __future__ import annotations

import collections
import contextlib
import gzip
import json
import random
import shutil
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from edge_agent.serving.grpc.methods import METHODS
from tests.fakes.packages import make_package, reference_images
from tests.integration.attacked_agent import TRANSPORTS, AttackedAgent
from tests.integration.hostile_requests import IMAGES, Request, Tensor, frame_of, grpc_message, http_body

# The one model that is loaded, unloaded and replaced; right requests go to another.
VICTIM = "victim"
_ATTACKERS = 6
_PATIENCE_S = 3.0
_HANGING = 3e4  # turns of a loop, about a microsecond each
_TOKENS = (
    b"\r\n", b"\n", b"\0", b"\r\n\r\n", b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n", b"ffffffff\r\n",
    b"Content-Encoding: gzip\r\n", b"Inference-Header-Content-Length: 7\r\n", b"Expect: 100-continue\r\n", b"[" * 400,
    b'"data":', b"null", b"1e999", b"-1", b"99999999999999999999", b'{"', b'"]}', b"BYTES", b"\xff\xff\xff\xff",
    b"shared_memory_region", b"\xc6\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x93", b"Connection: close\r\n",
)  # fmt: skip
_PATHS = (
    "/", "/v2", "/v2/health/ready", "/v2/models/digits", "/v2/models/stats", "/v2/models/digits/config", "/metrics",
    "/openapi.json", "/docs", "/v2/models/victim/ready", "/v2/systemsharedmemory/status", "/v2/repository/index",
    "/v2/cudasharedmemory/status", "/v2/models/digits/feedback", "/v2/models/%2e%2e/infer", "/v2/models/victim/infer",
    "/v2/repository/models/victim/load", "/v2/repository/models/victim/unload",
)  # fmt: skip


class Storm:
    """Attackers and, among them, applications whose right requests must be answered right.

    Args:
        seed: What the attackers do follows from it, but for when each gets its turn.
    """

    def __init__(self, device: AttackedAgent, folder: Path, seed: int) -> None:
        self.device, self.seed = device, seed
        self.attacks: collections.Counter[str] = collections.Counter()
        self.right = 0
        self.wrong: list[str] = []
        self.memory: list[int] = []
        self._over = threading.Event()
        self._packages = [
            make_package(folder / f"spare-{number}", name=VICTIM, version=str(number), seed=number).folder
            for number in (1, 2)
        ]

    def rage(self, seconds: float) -> None:
        """For so long."""
        attackers = [
            threading.Thread(target=self._attack, args=(random.Random(self.seed * 1000 + number),))
            for number in range(_ATTACKERS)
        ]
        applications = [threading.Thread(target=self._apply, args=(transport,)) for transport in TRANSPORTS]
        for thread in (*attackers, *applications):
            thread.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.device.process.is_running() and not self.wrong:
            self.memory.append(self.device.rss)
            time.sleep(min(1.0, seconds / 20))
        self._over.set()
        for thread in (*attackers, *applications):
            thread.join()

    def _apply(self, transport: str) -> None:
        while not self._over.wait(0.01):
            try:
                self.device.assert_serves(transport)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                self.wrong.append(f"{transport}: {error!r}")
            else:
                self.right += 1

    def _attack(self, source: random.Random) -> None:
        attacks: list[Callable[[random.Random], None]] = [
            *[self._send_mutated] * 8, *[self._send_random] * 2, *[self._ask_wrong] * 3, *[self._call_mutated] * 3,
            *[self._call_any_method] * 2, *[self._ask_any_path] * 3, *[self._send_packed] * 2, self._vanish,
            self._never_read, self._share_memory, self._move_packages, self._hang,
        ]  # fmt: skip
        while not self._over.is_set():
            attack = source.choice(attacks)
            # Cut off, refused, no answer in time: what an attacker has to expect.
            with contextlib.suppress(OSError, grpc.RpcError):
                attack(source)
            self.attacks[attack.__name__.strip("_")] += 1

    def _send_mutated(self, source: random.Random) -> None:
        transport = source.choice(("tcp", "unix", "frames"))
        seeds = [self._valid(source, transport) for _ in range(source.randrange(1, 4))]
        self._exchange(source, transport, mutated(source, b"".join(seeds)))

    def _send_random(self, source: random.Random) -> None:
        self._exchange(source, source.choice(TRANSPORTS), source.randbytes(source.randrange(1, 5000)))

    def _ask_wrong(self, source: random.Random) -> None:
        transport = source.choice(TRANSPORTS)
        self.device.ask(transport, wrong_request(source))

    def _call_mutated(self, source: random.Random) -> None:
        method = source.choice(("ModelInfer", *METHODS))
        data = grpc_message(wrong_request(source)).SerializeToString() if method == "ModelInfer" else b"\n\x06victim"
        self._call(method, mutated(source, data))

    def _call_any_method(self, source: random.Random) -> None:
        name, method = source.choice(list(METHODS.items()))
        message = method.request()
        text = source.choice(
            ("", "victim", "digits", "a/b", "..", "nobody", "x" * 5000, "é", "\0", "stats", "%2f", "?")
        )
        for field in ("name", "model_name", "key", "version"):
            if field in message.DESCRIPTOR.fields_by_name:
                setattr(message, field, text if field != "version" else source.choice(("", "1", "2/stats")))
        if "Repository" not in name or "Index" in name or text in ("victim", "nobody"):
            self._call(name, message.SerializeToString())

    def _call(self, method: str, data: bytes) -> None:
        with grpc.insecure_channel(str(self.device.addresses["grpc"])) as channel:
            call: Any = channel.unary_unary(
                f"/inference.GRPCInferenceService/{method}", request_serializer=None, response_deserializer=None
            )
            call(data, timeout=_PATIENCE_S)

    def _ask_any_path(self, source: random.Random) -> None:
        method = source.choice(("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"))
        path = source.choice(_PATHS) + source.choice(("", "", "?a=b", "/", "/x"))
        bodies = (
            b"",
            b"{}",
            b"null",
            b'{"parameters":{"version":"2"}}',
            b'{"ready":true}',
            b'{"request_id":"a","label":1}',
        )
        self.device.ask_http(method, path, source.choice(bodies), transport=source.choice(("tcp", "unix")))

    def _send_packed(self, source: random.Random) -> None:
        head, raw = http_body(Request())
        encoding, packed = source.choice((("gzip", gzip.compress(head + raw)), ("deflate", zlib.compress(head + raw))))
        headers = {"Content-Encoding": encoding, "Inference-Header-Content-Length": str(len(head))}
        if source.random() < 0.1:  # a bomb
            packed = gzip.compress(bytes(20_000_000)) if encoding == "gzip" else zlib.compress(bytes(20_000_000))
        self.device.ask_http("POST", "/v2/models/digits/infer", mutated(source, packed), headers)

    def _vanish(self, source: random.Random) -> None:
        transport = source.choice(("tcp", "unix", "frames"))
        data = self._valid(source, transport)
        with self._connect(transport) as connection:
            connection.sendall(data[: source.randrange(len(data) + 1)])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _never_read(self, source: random.Random) -> None:
        text = (400_000).to_bytes(4, "little") + b"x" * 400_000
        request = Request(model="echo", inputs=(Tensor("text", "BYTES", (1, 1), text),))
        transport = source.choice(("tcp", "unix", "frames"))
        with self._connect(transport) as connection:
            for _ in range(source.randrange(1, 20)):
                connection.sendall(whole_request(transport, request))

    def _share_memory(self, source: random.Random) -> None:
        memory = shared_memory.SharedMemory(create=True, size=4096)
        name = f"r{source.randrange(4)}"
        try:
            told = {
                "key": memory.name,
                "offset": source.choice((0, 0, 8, 4095)),
                "byte_size": source.choice((1024, 4096)),
            }
            path = f"/v2/systemsharedmemory/region/{name}"
            self.device.ask_http("POST", f"{path}/register", json.dumps(told).encode())
            region = (name, source.choice((0, 0, 4, 4000)), source.choice((512, 512, 80, 2**40)))
            request = Request(inputs=(Tensor(region=region),), outputs={"probabilities": (name, 600, 80)})
            if source.random() < 0.3:
                Path("/dev/shm", memory.name.lstrip("/")).write_bytes(b"")  # noqa: S108 - where it lies
            self.device.ask(source.choice(TRANSPORTS), request)
            if source.random() < 0.8:
                self.device.ask_http("POST", f"{path}/unregister")
        finally:
            memory.close()
            memory.unlink()

    def _move_packages(self, source: random.Random) -> None:
        package, place = source.choice(self._packages), self.device.models / f"{VICTIM}-{source.randrange(2)}"
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(shutil.Error):  # two attackers in one place
            shutil.copytree(package, place, dirs_exist_ok=True)
        if source.random() < 0.4:
            file = source.choice(sorted(place.iterdir()))
            file.write_bytes(mutated(source, file.read_bytes()))
        what = source.choice(("load", "load", "unload"))
        self.device.ask_http("POST", f"/v2/repository/models/{VICTIM}/{what}")

    def _hang(self, source: random.Random) -> None:
        model = source.choice(("sleeper", "queued"))
        slow = Tensor.of(np.full((1, 64), _HANGING, np.float32))
        self.device.ask(
            source.choice(TRANSPORTS), Request(model=model, inputs=(slow,), timeout_us=source.choice((0, 1)))
        )

    def _valid(self, source: random.Random, transport: str) -> bytes:
        return whole_request(transport, wrong_request(source) if source.random() < 0.3 else Request())

    def _exchange(self, source: random.Random, transport: str, data: bytes) -> None:
        cut = source.randrange(len(data) + 1)
        with self._connect(transport) as connection:
            connection.sendall(data[:cut])
            connection.sendall(data[cut:])
            connection.shutdown(socket.SHUT_WR)
            for _ in range(source.randrange(4)):
                if not connection.recv(65536):
                    return

    def _connect(self, transport: str) -> socket.socket:
        connection = self.device.connect(transport)
        connection.settimeout(_PATIENCE_S)
        return connection


def whole_request(transport: str, request: Request) -> bytes:
    """The bytes of a request on a connection."""
    if transport == "frames":
        return frame_of(request)
    head, raw = http_body(request)
    lines = [
        f"POST /v2/models/{request.model}/infer HTTP/1.1",
        "Host: localhost",
        f"Inference-Header-Content-Length: {len(head)}",
        f"Content-Length: {len(head + raw)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + head + raw


def wrong_request(source: random.Random) -> Request:
    """A request with something strange about it, or nothing."""
    images = reference_images(source.choice((1, 2, 64, 65)))
    if source.random() < 0.5:
        images[source.randrange(len(images)), source.randrange(64)] = source.choice(
            (np.nan, np.inf, -np.inf, 1.5, -1e30, 0.99)
        )
    tensor = Tensor.of(images)
    if source.random() < 0.5:
        tensor = Tensor(
            source.choice(("image", "text", "", "picture")),
            source.choice(("FP32", "FP32", "FP64", "BYTES", "BOOL", "INT8", "FP16", "UINT64")),
            source.choice((IMAGES.shape, (1, 64), (64,), (0, 64), (-1, 64), (2**33, 2**33), (1,) * 40, (1, 128))),
            source.choice((IMAGES.tobytes(), b"", source.randbytes(source.randrange(600)), bytes(100_000))),
        )
    return Request(
        model=source.choice(("digits", "digits", "echo", "queued", "sleeper", VICTIM, "nobody")),
        version=source.choice(("", "", "", "1", "2", "9")),
        inputs=(tensor,) * source.choice((1, 1, 1, 1, 0, 2)),
        outputs=source.choice((None, None, {"probabilities": None}, {"echo": None}, {"probabilities": ("r1", 0, 80)})),
        timeout_us=source.choice((0, 0, 1, 2**60)),
        id=source.choice(("", "a", "x" * 129)),
    )


def mutated(source: random.Random, data: bytes) -> bytes:
    """The same with some bytes changed, taken out, put in or doubled."""
    changed = bytearray(data)
    for _ in range(source.choice((0, 1, 1, 2, 3, 6))):
        at = source.randrange(len(changed) + 1)
        kind = source.randrange(5)
        if kind == 0:
            changed[at : at + 1] = source.randbytes(1)
        elif kind == 1:
            del changed[at : at + source.randrange(1, 30)]
        elif kind == 2:
            changed[at:at] = source.choice(_TOKENS)
        elif kind == 3:
            changed[at:at] = changed[at : at + source.randrange(1, 60)]
        else:
            del changed[at:]
    return bytes(changed)
