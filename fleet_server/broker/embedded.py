"""Runs the broker in a thread of its own, with its own event loop."""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
import threading
from collections.abc import Callable
from typing import Any

from edge_agent.contract.errors import AddressInUse, ConfigurationError
from fleet_server.broker.rules import SERVER_USER, TopicRules

_log = logging.getLogger(__name__)

_START_S = 30.0
_STOP_S = 15.0


class EmbeddedBroker:
    """An MQTT 3.1.1 broker inside the server's process.

    Args:
        port: 0 lets the system choose; :attr:`port` then tells.
        authenticate: Whether user and password are right; called in a thread, so it may ask the database.
        server: The user name of the server itself, who may publish and subscribe everywhere; no device can have it.
        tls: Where given, connections are encrypted with it.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        authenticate: Callable[[str, str], bool],
        fleet: str,
        server: str = SERVER_USER,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._host, self._wanted_port, self._tls = host, port, tls
        self._authenticate, self._rules = authenticate, TopicRules(fleet, server)
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)
        self._started = threading.Event()
        self._failure: OSError | None = None
        self._port: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._broker: Any = None

    @property
    def port(self) -> int:
        """Where it listens."""
        if self._port is None:
            raise ConfigurationError("the broker was not started: it has no port yet")
        return self._port

    def start(self) -> None:
        """Listen; returns once connections are accepted.

        Raises:
            AddressInUse: Somebody else listens there.
            ConfigurationError: The address cannot be listened on.
        """
        # Its remarks are about single packets, and its debug level is costly; what matters our own classes log.
        logging.getLogger("amqtt").setLevel(logging.CRITICAL)
        logging.getLogger("transitions").setLevel(logging.WARNING)
        self._thread.start()
        self._started.wait(_START_S)
        if self._failure is not None:
            self._thread.join()
            where = f"{self._host}:{self._wanted_port}"
            if self._failure.errno == errno.EADDRINUSE:
                raise AddressInUse(f"{where} is taken: choose another broker port, or stop the other broker")
            raise ConfigurationError(f"the broker cannot listen on {where}: {self._failure}")

    def stop(self) -> None:
        """End all connections and stop listening; retained messages are forgotten."""
        if self._loop is not None and self._stopping is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)

    def disconnect(self, client: str) -> None:
        """End the connection of one client, for instance of a device that was just revoked."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._broker.forget, client)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        # amqtt takes 0.2 s to import: only a server with an embedded broker pays for it.
        from amqtt.adapters import StreamWriterAdapter

        from fleet_server.broker.amqtt_broker import FleetBroker

        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(_log_exception)
        self._broker = FleetBroker(self._check, self._rules)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self._broker.serve(reader, StreamWriterAdapter(writer))
            except (OSError, EOFError) as error:
                _log.debug("a connection broke: %s", error)
            finally:
                writer.close()

        server = await asyncio.start_server(accept, self._host, self._wanted_port, ssl=self._tls)
        try:
            await self._broker.start()
            self._port = server.sockets[0].getsockname()[1]
            self._started.set()
            await self._stopping.wait()
        finally:
            server.close()
            await self._broker.shutdown()

    async def _check(self, user: str, password: str) -> bool:
        return await asyncio.to_thread(self._authenticate, user, password)


def _log_exception(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # amqtt leaves tasks behind that fail when their connection breaks; that is ordinary life, not an error.
    _log.debug("broker: %s", context.get("message"), exc_info=context.get("exception"))
