"""The HTTP server: uvicorn in a thread, on a socket that was bound before anything else was begun."""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time

import uvicorn
from fastapi import FastAPI

from edge_agent.contract.errors import AddressInUse, ConfigurationError

_START_S = 30.0
_STOP_S = 15.0


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; ``port`` 0 lets the system choose.

    Raises:
        AddressInUse: Somebody else listens there.
        ConfigurationError: The address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it a restart within a minute finds its own closed connections in the way; it does not share ports.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"{host}:{port} is taken: choose another --port, or stop what listens there") from error
        raise ConfigurationError(f"the server cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener


class HttpServer:
    """Serves an app until it is stopped."""

    def __init__(self, app: FastAPI, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=5,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._listener = listener
        # uvicorn takes signals over in the main thread only; in this one they stay with whoever runs the server.
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Begin; returns once requests are answered.

        Raises:
            ConfigurationError: It did not come up; the log says why.
        """
        self._thread.start()
        until = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                raise ConfigurationError("the HTTP server did not start; the log says why")
            time.sleep(0.01)

    def stop(self) -> None:
        """Finish the requests under way and stop."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)
        self._listener.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
        except Exception:
            logging.getLogger(__name__).exception("the HTTP server ended")
