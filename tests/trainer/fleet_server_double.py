"""A server that speaks the trainer's side of the fleet server's REST API over real HTTP, for one run."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from edge_agent.contract.runs import RunFile, RunProgress, RunResult
from edge_agent.runtime.package import Package


class FleetServerDouble:
    """Gives one run away and keeps what is reported.

    Args:
        packages: Whose files are served as blobs.
        versions: Of the model that the server knows already.

    Attributes:
        lost_at: Stage at which the run is another worker's from then on.
        away: How many results are answered with 503 before one is taken.
    """

    def __init__(self, run: RunFile, *packages: Package, versions: tuple[str, ...] = ("1",)) -> None:
        self.run: RunFile | None = run
        self.progress: list[RunProgress] = []
        self.results: list[RunResult] = []
        self.claims: list[dict[str, Any]] = []
        self.handed_back: list[int] = []
        self.lost = False
        self.lost_at = ""
        self.away = 0
        self.tampered = ""
        self.versions = versions
        self._blobs: dict[str, Path] = {}
        for package in packages:
            self._blobs[package.digest] = package.folder / "manifest.json"
            self._blobs.update({entry.sha256: package.path(name) for name, entry in package.manifest.files.items()})
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*double._get(self.path))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                authorised = self.headers["Authorization"] == "Bearer secret"
                self._answer(*(double._post(self.path, body) if authorised else (401, b'{"detail": "no token"}')))

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _get(self, path: str) -> tuple[int, bytes]:
        if path.startswith("/api/v1/models/"):
            return 200, msgspec.json.encode({"versions": [{"version": version} for version in self.versions]})
        digest = path.rpartition("/")[2]
        if digest not in self._blobs:
            return 404, b'{"detail": "no such file"}'
        data = self._blobs[digest].read_bytes()
        return 200, data[:-1] + b"\0" if digest == self.tampered else data

    def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/api/v1/runs/claim":
            self.claims.append(msgspec.json.decode(body))
            run, self.run = self.run, None
            return (204, b"") if run is None else (200, msgspec.json.encode(run))
        progress = msgspec.json.decode(body, type=RunProgress) if path.endswith("/progress") else None
        self.lost = self.lost or (progress is not None and progress.stage == self.lost_at)
        if self.lost:
            return 409, b'{"detail": "the lease was lost"}'
        if path.endswith("/hand-back"):
            self.handed_back.append(msgspec.json.decode(body)["fence"])
        elif progress is not None:
            self.progress.append(progress)
        elif self.away:
            self.away -= 1
            return 503, b'{"detail": "starting"}'
        else:
            self.results.append(msgspec.json.decode(body, type=RunResult))
        return 204, b""
