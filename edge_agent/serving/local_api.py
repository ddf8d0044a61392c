"""The local API as a whole: every way in which applications on this device reach its models, by the settings."""

from __future__ import annotations

import functools
import os
from typing import Protocol

from edge_agent.config import ApiSettings
from edge_agent.contract.errors import ConfigurationError
from edge_agent.runtime.asked_inputs import AskedInputs
from edge_agent.runtime.repository import Repository
from edge_agent.runtime.slots import Slots
from edge_agent.serving.access import Access, check_reach
from edge_agent.serving.admission import Admission
from edge_agent.serving.busy_poll import BusyPoll
from edge_agent.serving.connections import Connections
from edge_agent.serving.frames.handler import FrameHandler
from edge_agent.serving.frames.protocol import FrameLimits, FrameProtocol
from edge_agent.serving.http.limits import HttpLimits
from edge_agent.serving.http.protocol import HttpProtocol
from edge_agent.serving.inference import Inference, Observer
from edge_agent.serving.labels import LabelSink
from edge_agent.serving.listen import address_of, listen_tcp, listen_unix
from edge_agent.serving.peer import Transport
from edge_agent.serving.rest.metrics import BoardState
from edge_agent.serving.rest.router import Router
from edge_agent.serving.server import Listener, Server, Service
from edge_agent.serving.shared_memory import Regions


class Watcher(Observer, LabelSink, Protocol):
    """Who is told of every request, and takes labels for them."""


class LocalApi:
    """Serves; the constructor takes every address, so that a taken one is known before anything else starts.

    Args:
        watcher: Told of every request; takes labels.
        threads: Inferences at once of models that are too slow for the event loop's own thread.
        board: What ``/metrics`` tells of the board; None where it tells nothing.
        asked: Remembers what applications send; None where nobody wants to know.
        trouble: What is wrong with this device while models are served all the same; health says it.
    Raises:
        ConfigurationError: The settings would let strangers in, or no such address can be.
        AddressInUse: Somebody listens there already.
    """

    def __init__(
        self,
        settings: ApiSettings,
        *,
        slots: Slots,
        repository: Repository,
        watcher: Watcher,
        threads: int,
        agent_version: str,
        board: BoardState | None = None,
        asked: AskedInputs | None = None,
        trouble: str = "",
    ) -> None:
        unix_sockets = bool(settings.unix_socket or settings.frames_socket)
        check_reach(settings.host, unix_sockets=unix_sockets, apps=settings.apps)
        _check_paths(settings)
        access = Access(settings.apps)
        limit_bytes = settings.max_body_mib << 20
        admission = Admission(max_requests=settings.max_pending, max_bytes=2 * limit_bytes)
        self._settings = settings
        self._regions = Regions(max_tensor_bytes=limit_bytes)
        self._inference = Inference(watcher, threads=threads, asked=asked)
        busy_poll = BusyPoll(settings.busy_poll_us, self._inference.running)
        self._connections = Connections(settings.max_connections, busy_poll=busy_poll)
        self._router = Router(
            slots,
            repository,
            self._inference,
            watcher,
            self._regions,
            access=access,
            admission=admission,
            agent_version=agent_version,
            max_rows=settings.max_rows,
            body_limit_bytes=limit_bytes,
            cors_origins=settings.cors_origins,
            connections=self._connections,
            board=board,
            trouble=trouble,
        )
        self._frames = FrameHandler(
            slots=slots,
            repository=repository,
            inference=self._inference,
            feedback=watcher,
            regions=self._regions,
            access=access,
            admission=admission,
            agent_version=agent_version,
            max_rows=settings.max_rows,
        )
        self._listeners: dict[str, Listener] = {}
        self._grpc: dict[str, str] = {}
        try:
            self._listen(limit_bytes)
            services = [self._inference, *self._grpc_services(slots, repository, access, admission)]
            self._server = Server(tuple(self._listeners.values()), self._connections, services=services)
        except BaseException:
            Server(tuple(self._listeners.values()), self._connections).close()
            self._end()
            raise

    @property
    def addresses(self) -> dict[str, str]:
        """Where it listens, by kind.

        ``api`` is what an application should take that knows no better; ``unix``, ``frames``, ``grpc`` and
        ``grpc_unix`` are there where the settings ask for them.
        """
        found = {name: listener.address for name, listener in self._listeners.items()}
        first = found.pop("tcp", "") or found.get("unix", "")
        return {"api": first, **found, **self._grpc}

    def run(self) -> None:
        """Serve in this thread until SIGINT or SIGTERM (in the main thread), or :meth:`stop`."""
        self._server.run()

    def start(self) -> None:
        """Serve in a thread of its own; connections are taken from now on."""
        self._server.start()

    def stop(self, timeout_s: float = 15.0) -> None:
        """Answer what is in flight, then stop and close."""
        self._server.stop(timeout_s)
        self.close()

    def close(self) -> None:
        """Give addresses, threads and shared memory back; after :meth:`run` has returned."""
        self._server.close()
        self._end()

    def _end(self) -> None:
        self._router.close()
        self._inference.close()
        self._regions.close()

    def _listen(self, limit_bytes: int) -> None:
        settings, connections = self._settings, self._connections
        mode = int(settings.socket_mode, 8)
        http = HttpLimits(
            max_header_bytes=settings.max_header_kib << 10,
            head_timeout_s=settings.head_timeout_s,
            body_timeout_s=settings.body_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
        )
        if settings.host:
            tcp = listen_tcp(settings.host, settings.port)
            self._listeners["tcp"] = Listener(
                tcp, lambda: HttpProtocol(self._router, connections, http, Transport.TCP), address_of(tcp)
            )
        if settings.unix_socket:
            unix = listen_unix(settings.unix_socket, mode)
            self._listeners["unix"] = Listener(
                unix,
                lambda: HttpProtocol(self._router, connections, http, Transport.UNIX),
                address_of(unix),
                settings.unix_socket,
            )
        if settings.frames_socket:
            frames = FrameLimits(limit_bytes, settings.body_timeout_s, settings.idle_timeout_s)
            socket = listen_unix(settings.frames_socket, mode)
            self._listeners["frames"] = Listener(
                socket,
                lambda: FrameProtocol(self._frames, connections, frames),
                address_of(socket),
                settings.frames_socket,
            )

    def _grpc_services(
        self, slots: Slots, repository: Repository, access: Access, admission: Admission
    ) -> list[Service]:
        settings = self._settings
        if settings.grpc_port is None and not settings.grpc_socket:
            return []
        try:  # an extra: 20 MB on disk and as much in memory, which only those devices pay that use it
            from edge_agent.serving.grpc.server import GrpcServer
            from edge_agent.serving.grpc.service import GrpcService
        except ImportError as error:
            raise ConfigurationError(
                f"[api] grpc_port and grpc_socket need the extra grpc ({error}): install the agent's wheel with it, "
                "pip install 'shoal_agent-VERSION-py3-none-any.whl[grpc]'"
            ) from error
        service = GrpcService(
            self._router,
            slots=slots,
            repository=repository,
            inference=self._inference,
            regions=self._regions,
            access=access,
            admission=admission,
            max_rows=settings.max_rows,
            message_s=settings.body_timeout_s,
        )
        # A message has room for names and parameters beside the tensors that max_body_mib is about.
        server = functools.partial(
            GrpcServer,
            service,
            max_bytes=(settings.max_body_mib << 20) + 65536,
            max_calls=settings.max_connections,
            idle_s=settings.idle_timeout_s,
        )
        servers: list[Service] = []
        if settings.grpc_port is not None:
            if not settings.host:
                raise ConfigurationError("[api] grpc_port needs a host; grpc_socket is the one without TCP")
            tcp = server(host=settings.host, port=settings.grpc_port)
            self._grpc["grpc"] = tcp.address
            servers.append(tcp)
        if settings.grpc_socket:
            unix = server(path=settings.grpc_socket, mode=int(settings.socket_mode, 8))
            self._grpc["grpc_unix"] = unix.address
            servers.append(unix)
        return servers


def _check_paths(settings: ApiSettings) -> None:
    """Refuse one path for two sockets: the second would be told that another program listens there."""
    taken: dict[str, str] = {}
    for name in ("unix_socket", "frames_socket", "grpc_socket"):
        path = getattr(settings, name)
        if not path:
            continue
        other = taken.setdefault(os.path.realpath(path), name)
        if other != name:
            raise ConfigurationError(
                f"[api] {other} and {name} are the same path, {path}: give each its own, they speak different protocols"
            )
