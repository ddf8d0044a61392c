"""A mirror of package files on loopback: it answers whoever asks, and may lie or break off."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror:
    """Files by path.

    Args:
        files: What it has; tests may change it.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.cut_after: dict[str, int] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def asked(self, path: str) -> list[str]:
        """The ranges with which a path was asked for."""
        return [headers.get("range", "") for asked, headers in self.requests if asked == path]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                mirror.requests.append((self.path, headers))
                data = mirror.files.get(self.path)
                if data is None:
                    self.send_error(404)
                    return
                first = int(headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
                self.send_response(206 if first else 200)
                self.send_header("Content-Length", str(len(data) - first))
                if first:
                    self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
                self.end_headers()
                self.wfile.write(data[first:][: mirror.cut_after.pop(self.path, len(data))])

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Say nothing."""

        return Handler


@contextlib.contextmanager
def mirror_of(files: dict[str, bytes]) -> Iterator[Mirror]:
    """A started mirror, stopped at the end."""
    running = Mirror(files)
    running.start()
    try:
        yield running
    finally:
        running.stop()
