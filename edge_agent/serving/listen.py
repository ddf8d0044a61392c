"""Takes addresses to listen on, before anything else of the agent starts: TCP ports and unix sockets."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from edge_agent.contract.errors import AddressInUse, ConfigurationError

_BACKLOG = 1024


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Args:
        port: 0 takes a free one.
    Raises:
        AddressInUse: Somebody listens there already.
        ConfigurationError: There can be no such address.
    """
    if not 0 <= port <= 65535:  # getaddrinfo would take its lower 16 bits
        raise ConfigurationError(f"{host}:{port}: no such port: it must be 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(f"{host}:{port}: no such address: {error}") from error
    family, kind, _, _, address = found[0]
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise _refusal(listener, f"{host}:{port}", error) from error
    return listener


def listen_unix(path: str, mode: int = 0o660) -> socket.socket:
    """A listening unix socket; a dead one that a killed agent has left at ``path`` is replaced.

    Nobody can connect before the file has ``mode``, and it never has wider permissions: Linux takes a new socket
    file's mode from the socket (and the umask, which belongs to all threads and is left alone), and a socket that is
    bound but does not listen yet refuses everybody.

    Args:
        mode: Permissions of the file: who may write to it may connect (unix(7)).
    Raises:
        AddressInUse: Somebody listens there already.
        ConfigurationError: There can be no such address.
    """
    _remove_dead_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), mode)
        listener.bind(path)
        Path(path).chmod(mode)  # what the umask has taken away
        listener.listen(_BACKLOG)
    except OSError as error:
        raise _refusal(listener, path, error) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """``http://HOST:PORT``, or ``unix:PATH``."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _refusal(listener: socket.socket, shown: str, error: OSError) -> AddressInUse | ConfigurationError:
    listener.close()
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"{shown}: already in use: stop the other program, or choose another address")
    if error.errno == errno.ENOENT:
        folder = Path(shown).parent
        systemd = f" (under systemd, RuntimeDirectory={folder.name} does)" if str(folder.parent) == "/run" else ""
        return ConfigurationError(f"{shown}: the folder {folder} is not there: make it{systemd}")
    return ConfigurationError(f"{shown}: cannot listen there: {error}")


def _remove_dead_socket(path: str) -> None:
    """A killed agent leaves its socket file behind, on which nobody answers."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116 - one call, no Path needed
            raise ConfigurationError(f"{path}: is there already, and no socket: choose another path")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path!r}: cannot listen there: {error}") from error
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot tell whether somebody listens: {error.strerror}") from error
