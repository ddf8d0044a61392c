"""The console's own files and the vendored ones: read once, served under an address that changes with their content."""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
from importlib.resources.abc import Traversable

from fastapi import Request, Response

_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


class Assets:
    """The files under ``static/`` by relative name."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._packed: dict[str, bytes] = {}  # once somebody has asked for it: some are large and seldom wanted
        self._tags: dict[str, str] = {}
        _collect(importlib.resources.files("fleet_server.console") / "static", "", self._files)
        for name, data in self._files.items():
            self._tags[name] = hashlib.sha256(data).hexdigest()[:16]

    def url(self, name: str) -> str:
        """The address of a file. Browsers keep it for good, since other content has another address.

        Raises:
            KeyError: There is no such file.
        """
        return f"/static/{name}?v={self._tags[name]}"

    def answer(self, name: str, request: Request) -> Response | None:
        """The file, or None where there is none."""
        if name not in self._files:
            return None
        newest = request.query_params.get("v") == self._tags[name]
        headers = {
            "Cache-Control": "public, max-age=31536000, immutable" if newest else "no-cache",
            "ETag": f'"{self._tags[name]}"',
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
        }
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        body = self._files[name]
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            if name not in self._packed:
                self._packed[name] = gzip.compress(body, mtime=0)
            body = self._packed[name]
        return Response(body, media_type=_TYPES["." + name.rpartition(".")[2]], headers=headers)


def _collect(folder: Traversable, prefix: str, into: dict[str, bytes]) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            _collect(entry, f"{prefix}{entry.name}/", into)
        elif any(entry.name.endswith(ending) for ending in _TYPES):
            into[prefix + entry.name] = entry.read_bytes()
