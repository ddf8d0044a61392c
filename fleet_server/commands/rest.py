"""The server's REST API as the commands use it: one address, one token, errors in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

import click

from edge_agent.contract.errors import ConfigurationError, NetworkError, ServerRefused

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_SERVER = "http://127.0.0.1:8080"


class Refused(ServerRefused):
    """The server is there and says no. Its own words say why; where it was asked is said with ``--verbose``."""

    exit_code = 7

    def __init__(self, url: str, *, status: int, detail: str, verbose: bool) -> None:
        super().__init__(url, status=status, detail=detail)
        self._verbose = verbose

    def __str__(self) -> str:
        return super().__str__() if self._verbose else self.detail


def part(name: str) -> str:
    """A name that a person gave, as one part of a path.

    Raises:
        ConfigurationError: It is empty: the path would be another.
    """
    if not name:
        raise ConfigurationError("an empty name: give the name of what you mean")
    return quote(name, safe="")


class Rest:
    """Requests to one server with one token."""

    def __init__(self, url: str, token: str, *, verbose: bool = False) -> None:
        self.url, self._token, self._verbose = url.rstrip("/"), token, verbose

    def get(self, path: str, **query: Any) -> Any:
        """What ``GET /api/v1/PATH`` answers."""
        return self._send("GET", path, query={name: value for name, value in query.items() if value is not None})

    def get_bytes(self, path: str) -> bytes:
        """The file that ``GET /api/v1/PATH`` answers."""
        return bytes(self._reply("GET", path).content)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What ``POST /api/v1/PATH`` answers."""
        return self._send("POST", path, body=body or {})

    def put(self, path: str, body: dict[str, Any]) -> Any:
        """What ``PUT /api/v1/PATH`` answers."""
        return self._send("PUT", path, body=body)

    def delete(self, path: str) -> None:
        """``DELETE /api/v1/PATH``."""
        self._send("DELETE", path)

    def _send(self, method: str, path: str, *, query: Any = None, body: Any = None) -> Any:
        reply = self._reply(method, path, query=query, body=body)
        try:
            return reply.json() if reply.content else None
        except ValueError as error:
            raise NetworkError(
                f"{reply.url} is no Shoal server's: it answers {reply.status_code}, not with JSON"
            ) from error

    def _reply(self, method: str, path: str, *, query: Any = None, body: Any = None) -> Any:
        import httpx  # 0.1 s to import, which `shoal --help` does not spend

        url = f"{self.url}/api/v1/{path}"
        if not self._token.isascii() or not self._token.isprintable():
            raise ConfigurationError("the token is none: give it as `shoal tokens create` printed it")
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            reply = httpx.request(method, url, params=query, json=body, headers=headers, timeout=30.0)
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"{self.url} is no address of a server: {error}") from error
        except httpx.HTTPError as error:
            raise NetworkError(
                f"{self.url} does not answer ({error}): is the server running? Give its address with --server"
            ) from error
        if reply.is_client_error:
            raise Refused(url, status=reply.status_code, detail=_detail(reply), verbose=self._verbose)
        if not reply.is_success:
            raise ServerRefused(url, status=reply.status_code, detail=_detail(reply))
        return reply


def _detail(reply: Any) -> str:
    if reply.has_redirect_location:
        return f"it is at {reply.headers['location']} instead; give that address with --server"
    try:
        found = reply.json()["error"]
    except (ValueError, KeyError, TypeError):
        return str(reply.text)[:200]
    return str(found)


def connects(command: Callable[Concatenate[Rest, P], R]) -> Callable[P, R]:
    """Give a command its server: options --server, --token, --data, --verbose; a :class:`Rest` as first argument."""

    @click.option("--server", envvar="SHOAL_SERVER", help=f"Base URL of the server.  [default: {DEFAULT_SERVER}]")
    @click.option("--token", envvar="SHOAL_TOKEN", help="API token, as `shoal tokens create` prints it.")
    @click.option(
        "--data",
        envvar="SHOAL_DATA",
        type=click.Path(path_type=Path, file_okay=False),
        help="The server's data folder, where it is on this machine: address and token are read from it.",
    )
    @click.option("--verbose", is_flag=True, help="Where the server refuses, show the address and status too.")
    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        server, token, data = (kwargs.pop(name) for name in ("server", "token", "data"))
        verbose = bool(kwargs.pop("verbose"))
        rest = Rest(*_where(_text(server), _text(token), data if isinstance(data, Path) else None), verbose=verbose)
        return command(rest, *args, **kwargs)

    return wrapped


def _text(value: object) -> str | None:
    return str(value) if value is not None else None


def _where(server: str | None, token: str | None, data: Path | None) -> tuple[str, str]:
    if data is not None:
        if token is None:
            token = _read(data / "admin.token").strip()
        if server is None:
            try:
                server = str(json.loads(_read(data / "server.json"))["url"])
            except (ValueError, KeyError) as error:
                raise ConfigurationError(f"{data / 'server.json'}: {error}; is this a server's data folder?") from error
    return server or DEFAULT_SERVER, token or ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; is the server running with this data folder?") from error
