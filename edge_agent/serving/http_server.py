"""Listens: the application on uvicorn, on a TCP port or a unix socket that is taken before anything else starts."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from edge_agent.contract.errors import AddressInUse, ConfigurationError
from edge_agent.serving.app import InferenceApp

_BACKLOG = 1024


class _Server(uvicorn.Server):
    """Uvicorn's server, but it returns after SIGINT and SIGTERM instead of raising them again.

    The agent has to stop its other parts, in order, before the process ends.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class HttpServer:
    """One listening socket. The constructor takes the address, so that a taken one is known at once.

    Args:
        port: 0 takes a free one.
        uds: Path of a unix socket to listen on instead of TCP; empty for none.
    Raises:
        AddressInUse: Somebody listens there already.
        ConfigurationError: There can be no such address.
    """

    def __init__(self, app: InferenceApp, *, host: str = "127.0.0.1", port: int = 0, uds: str = "") -> None:
        self._uds, self._closed = uds, False
        self._socket = _listen_unix(uds) if uds else _listen_tcp(host, port)
        # Read once: others ask for it until the very end, when the socket is closed already.
        self._bound: tuple[str, int] = ("", 0) if uds else self._socket.getsockname()[:2]
        config = uvicorn.Config(
            app,
            loop="uvloop" if importlib.util.find_spec("uvloop") else "asyncio",
            http="httptools",
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=120,  # applications keep one connection open, and may be silent for a while
            timeout_graceful_shutdown=10,
        )
        self._server = _Server(config)
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """``http://HOST:PORT``, or ``unix:PATH``."""
        if self._uds:
            return f"unix:{self._uds}"
        host, port = self._bound
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def port(self) -> int:
        """The TCP port; 0 for a unix socket."""
        return self._bound[1]

    def run(self) -> None:
        """Serve in this thread until :meth:`stop`, or in the main thread until SIGINT or SIGTERM."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.close()

    def close(self) -> None:
        """Give the address back; :meth:`run` does so itself."""
        self._socket.close()
        if self._uds and not self._closed:  # later the path may be another's
            Path(self._uds).unlink(missing_ok=True)
        self._closed = True

    def start(self) -> None:
        """Serve in a thread of its own; connections are taken from now on."""
        self._thread = threading.Thread(target=self.run, name="http", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 15.0) -> None:
        """Answer what is in flight, then stop."""
        self._server.should_exit = True
        if self._thread is None:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"{self.address}: the server did not stop within {timeout_s} s")


def serve(app: InferenceApp, host: str, port: int, uds: str = "") -> None:
    """Listen and serve until SIGINT or SIGTERM.

    Raises:
        AddressInUse: Somebody listens there already.
    """
    HttpServer(app, host=host, port=port, uds=uds).run()


def _listen_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"{host}:{port}: no such address: {error}") from error
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    _bind(listener, address, f"{host}:{port}")
    return listener


def _listen_unix(path: str) -> socket.socket:
    _remove_dead_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _bind(listener, path, path)
    return listener


def _bind(listener: socket.socket, address: tuple[object, ...] | str, shown: str) -> None:
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"{shown}: already in use: stop the other program, or choose another address") from error
        raise ConfigurationError(f"{shown}: cannot listen there: {error}") from error


def _remove_dead_socket(path: str) -> None:
    """A killed agent leaves its socket file behind, on which nobody answers."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116 - one call, no Path needed
            raise ConfigurationError(f"{path}: is there already, and no socket: choose another path")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot listen there: {error.strerror}") from error
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot tell whether somebody listens: {error.strerror}") from error
