"""A real update server on loopback, with its keys, its publisher, and somebody on the line who may tamper."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Header
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_agent.contract.enrolment import BrokerAddress, Enrolment
from edge_agent.contract.manifest import MANIFEST_FILE, Manifest
from edge_agent.contract.messages import Desired, DesiredModel
from edge_agent.contract.repository import Assignment, target_name
from edge_agent.runtime.package import Package
from fleet_server import http_errors
from fleet_server.data_folder import newest_root
from fleet_server.errors import NotAuthenticated
from fleet_server.updates import approval_routes
from fleet_server.updates.approvals import Approvals
from fleet_server.updates.deltas import Deltas
from fleet_server.updates.director import Director, load_signer
from fleet_server.updates.image_repository import ImageRepository
from fleet_server.updates.image_verification import shown_targets
from fleet_server.updates.routes import routes
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import DIRECTOR, KeyFolder
from trainer.publish.repository import Publisher

TOKEN = "publisher-token"
SECRETS = {"camera-1": "secret-1", "camera-2": "secret-2"}


# Given the path and where the answer goes.
Answer = Callable[[str, Send], Awaitable[None]]


@dataclasses.dataclass
class Release:
    """What ``on_release`` was told."""

    manifest: Manifest
    digest: str
    evaluation: dict[str, Any]


class OnTheLine:
    """Somebody between server and device, who may replace bodies, cut connections, and answer in any way.

    Args:
        answers: By the beginning of a path: who answers instead of the server.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.answers: dict[str, Answer] = {}
        self.replace: dict[str, bytes] = {}
        self.cut_after: dict[str, int] = {}
        self.requests: list[tuple[str, str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append((scope["method"], path, headers.get("range", "")))
        answer = next((one for beginning, one in self.answers.items() if path.startswith(beginning)), None)
        if answer is not None:
            await answer(path, send)
        elif path in self.replace:
            await _answer(send, self.replace[path])
        elif path in self.cut_after:
            await self._app(scope, receive, _cutting(send, self.cut_after.pop(path)))
        else:
            await self._app(scope, receive, send)

    def leave(self) -> None:
        """The attack ends."""
        self.answers.clear()
        self.replace.clear()
        self.cut_after.clear()

    def asked(self, path: str) -> list[str]:
        """The ranges with which a path was asked for."""
        return [wanted for method, asked, wanted in self.requests if method == "GET" and asked == path]


async def _answer(send: Send, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _cutting(send: Send, after: int) -> Send:
    left = after

    async def cut(message: Message) -> None:
        nonlocal left
        if message["type"] == "http.response.body":
            body = message.get("body", b"")[:left]
            left -= len(body)
            await send({**message, "body": body, "more_body": True})
            if left <= 0:
                raise ConnectionAbortedError("the line is cut here, as the test wants it")
        else:
            await send(message)

    return cut


class UpdateServer:
    """Keys, image repository, director and HTTP on a free port of loopback.

    Args:
        folder: Empty, or what an earlier server left there.
        utc_now: The server's and the publisher's clock.
    """

    def __init__(
        self, folder: Path, *, models: tuple[str, ...] = ("digits",), utc_now: Callable[[], dt.datetime] | None = None
    ) -> None:
        now = utc_now or (lambda: dt.datetime.now(dt.UTC))
        self.keys_folder = folder / "keys"
        self.keys = KeyFolder(self.keys_folder)
        self.signing = ImageSigning(self.keys, now=now)
        if not self.keys.names():
            self.signing.create(models)
        self.releases: list[Release] = []
        self.images = ImageRepository(
            folder / "repository",
            root=(self.keys_folder / "image/1.root.json").read_bytes(),
            on_release=lambda *told: self.releases.append(Release(*told)),
            utc_now=now,
        )
        self.director = Director(
            folder / "repository",
            root=newest_root(self.keys_folder / "director").read_bytes(),
            signer=load_signer(self.keys.path(DIRECTOR)),
            utc_now=now,
        )
        self.deltas = Deltas(
            folder / "repository/deltas", self.images.blobs, lambda: shown_targets(self.images.metadata)
        )
        app = FastAPI()
        http_errors.install(app)
        app.include_router(
            routes(
                self.images,
                self.director,
                require_device=_require_device,
                require_publisher=_require_publisher,
                deltas=self.deltas,
            )
        )
        self.approvals = Approvals(folder / "repository", self.images, utc_now=now)
        app.include_router(
            approval_routes.routes(
                self.approvals,
                require_viewer=_require_publisher,
                require_publisher=_require_publisher,
                require_admin=_require_publisher,
                caller=lambda: "line 3",
            )
        )
        self.line = OnTheLine(app)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(self.line, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self.publisher = Publisher(self.keys_folder, self.url, TOKEN, now=now)

    def start(self) -> None:
        self._thread.start()
        until = time.monotonic() + 20
        while not self._server.started:
            if time.monotonic() > until:
                raise TimeoutError("the update server did not start")
            time.sleep(0.01)

    def stop(self) -> None:
        self.publisher.close()
        self._server.should_exit = True
        self._thread.join(20)
        self._socket.close()
        self.deltas.close()
        self.director.close()

    def enrolment(self, device: str = "camera-1") -> Enrolment:
        return Enrolment(
            fleet="shop", device=device, secret=SECRETS[device], server=self.url,
            broker=BrokerAddress(host="127.0.0.1", port=1), image_root=self.images.root,
            director_root=self.director.root,
        )  # fmt: skip

    def assign(self, package: Package, *, device: str = "camera-1", release: int | None = None) -> Desired:
        """Let the director name the package; gives the hint that the device would get."""
        model, version = package.manifest.name, package.manifest.version
        release = release or self.director.release_of(device, model) + 1
        length = (package.folder / MANIFEST_FILE).stat().st_size
        assignment = Assignment(device=device, release=release, rollout="rollout-1")
        self.director.assign(device, target_name(model, version), length, package.digest, assignment)
        return hint(package, release)


def hint(package: Package, release: int) -> Desired:
    """The unsigned hint that tells a device to look."""
    wanted = DesiredModel(
        version=package.manifest.version, package=package.digest, release=release, rollout="rollout-1"
    )
    return Desired(revision=release, models={package.manifest.name: wanted})


@contextlib.contextmanager
def update_server(folder: Path, **settings: Any) -> Iterator[UpdateServer]:
    """A started server, stopped at the end."""
    server = UpdateServer(folder, **settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _require_device(authorization: Annotated[str, Header()] = "") -> str:
    for device, secret in SECRETS.items():
        if authorization == f"Bearer {secret}":
            return device
    if authorization == f"Bearer {TOKEN}":  # the publisher reads what is shown before it signs on
        return ""
    raise NotAuthenticated("give this device's secret")


def _require_publisher(authorization: Annotated[str, Header()] = "") -> None:
    if authorization != f"Bearer {TOKEN}":
        raise NotAuthenticated("give a valid token")
