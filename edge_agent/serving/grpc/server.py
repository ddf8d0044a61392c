"""Listens for gRPC calls, in the event loop that serves everything else."""

from __future__ import annotations

import socket
from pathlib import Path

import grpc
import grpc.aio

from edge_agent.contract.errors import AddressInUse, ConfigurationError
from edge_agent.serving.grpc.service import GrpcService
from edge_agent.serving.listen import address_of, listen_tcp, listen_unix

# A connection on which nobody speaks HTTP/2 is closed after so long.
_HANDSHAKE_MS = 10_000


class GrpcServer:
    """One address for gRPC; the constructor proves that it is free.

    Args:
        host: Of the TCP port.
        port: 0 takes a free one.
        path: Of a unix socket in place of TCP; empty for TCP.
        mode: Permissions of that socket.
        max_bytes: Longest message.
        max_calls: Calls at once, and connections; beyond them gRPC itself refuses.
        idle_s: Seconds after which a connection without calls is closed, and a stream ends that sends nothing.
    Raises:
        AddressInUse: Somebody listens there already.
        ConfigurationError: There can be no such address.
    """

    def __init__(
        self,
        service: GrpcService,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        path: str = "",
        mode: int = 0o660,
        max_bytes: int,
        max_calls: int,
        idle_s: float = 120.0,
    ) -> None:
        self._service, self._path, self._mode = service, path, mode
        self._max_bytes, self._max_calls, self._idle_s = max_bytes, max_calls, idle_s
        # gRPC takes no socket of ours: this one only finds out, and is closed again.
        probe = listen_unix(path, mode) if path else listen_tcp(host, port)
        try:
            self._target = f"unix:{path}" if path else _target(probe)
            self.address = f"unix:{path}" if path else address_of(probe).removeprefix("http://")
        finally:
            probe.close()
            _remove(path)
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Take calls from now on; in the event loop.

        Raises:
            AddressInUse: Somebody took the address meanwhile.
            ConfigurationError: Its socket cannot be given its mode.
        """
        server = grpc.aio.server(
            maximum_concurrent_rpcs=self._max_calls,
            options=[
                ("grpc.so_reuseport", 0),  # else two programs could share the port, and neither would know
                ("grpc.max_receive_message_length", self._max_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", 16 * 1024),
                # Else much of a message is received before anybody wants to read it.
                ("grpc.http2.bdp_probe", 0),
                # Without these whoever only connects takes one file descriptor after the other, until none is left.
                ("grpc.max_allowed_incoming_connections", self._max_calls),
                # Of one connection; its other calls wait with their sender. So one alone cannot keep all others out.
                ("grpc.max_concurrent_streams", max(1, self._max_calls // 2)),
                ("grpc.max_connection_idle_ms", round(self._idle_s * 1000)),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
            ],
        )
        handlers = self._service.handlers(max_calls=self._max_calls, max_bytes=self._max_bytes, idle_s=self._idle_s)
        server.add_generic_rpc_handlers((handlers,))
        try:
            taken = server.add_insecure_port(self._target)
        except RuntimeError as error:
            raise AddressInUse(f"{self.address}: gRPC cannot listen there: {error}") from error
        if not taken:
            raise AddressInUse(f"{self.address}: gRPC cannot listen there: already in use")
        _permit(self._path, self._mode)
        await server.start()
        self._server = server

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and let those in progress end within ``grace_s`` seconds."""
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
            _remove(self._path)


def _target(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _permit(path: str, mode: int) -> None:
    if path:
        try:
            Path(path).chmod(mode)
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from error


def _remove(path: str) -> None:
    if path:
        Path(path).unlink(missing_ok=True)
