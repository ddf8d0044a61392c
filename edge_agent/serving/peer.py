"""Who is at the other end of a connection, as far as the operating system tells."""

from __future__ import annotations

import asyncio
import enum
import ipaddress
import socket
import struct
from typing import NamedTuple, cast


class Transport(str, enum.Enum):
    """How an application reaches the agent."""

    TCP = "tcp"
    UNIX = "unix"
    FRAMES = "frames"
    GRPC = "grpc"
    IN_PROCESS = "in-process"


class Peer(NamedTuple):
    """One end of a connection.

    Args:
        address: Host of a TCP peer; empty on a unix socket.
        loopback: Whether it is on this machine: a unix socket, or a loopback address.
        pid, uid, gid: Of the process that connected to a unix socket (SO_PEERCRED); None elsewhere.
    """

    transport: Transport
    address: str = ""
    loopback: bool = True
    pid: int | None = None
    uid: int | None = None
    gid: int | None = None


def unix_peer(connection: socket.socket, transport: Transport) -> Peer:
    """The peer of an accepted unix socket, by the credentials that the kernel vouches for (unix(7), SO_PEERCRED)."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", packed)
    return Peer(transport, pid=pid, uid=uid, gid=gid)


def peer_of(transport: asyncio.Transport, kind: Transport) -> Peer:
    """Who is at the other end.

    Raises:
        OSError, ValueError, TypeError: It has gone.
    """
    if kind is Transport.UNIX:
        return unix_peer(cast(socket.socket, transport.get_extra_info("socket")), kind)
    host = str(transport.get_extra_info("peername")[0])
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return Peer(kind, address=host, loopback=(mapped or address).is_loopback)
