"""Files of the fleet server over HTTP: the device's secret, time limits, length limits, and nothing trusted."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from edge_agent.contract.errors import NetworkError, ServerRefused, WrongBytes

if TYPE_CHECKING:
    import urllib3

    from edge_agent.update.paced import Pace

_CHUNK_BYTES = 64 * 1024
_ERROR_TEXT_BYTES = 300
# Slower than this over a minute of waiting is no connection, or somebody who plays for time.
_LEAST_BYTES_PER_S, _WINDOW_S = 64.0, 60.0
_RANGE_NOT_SATISFIABLE = 416
# How urllib3 names a connection or a pool of them; the URL says it already.
_CONNECTION = re.compile(r"^\w+\(host=[^)]*\): ")


class Body(NamedTuple):
    """What answers a GET.

    Args:
        resumed: Whether it begins at the offset asked for, else at 0.
        size_bytes: Of the whole file, as the server says; None where it does not.
        chunks: The bytes as they come.
    """

    resumed: bool
    size_bytes: int | None
    chunks: Iterator[bytes]


class ServerFiles:
    """GET requests to one fleet server. Redirects are not followed: the secret goes to this server alone.

    Args:
        server: Base URL.
        secret: Bearer token of this device.
        stall_s: Longest wait for a connection, and for the next bytes on it.
        while_waiting: Called about twice a second while bytes are awaited; what it raises ends the wait.
    """

    def __init__(
        self, server: str, secret: str, *, stall_s: float = 20.0, while_waiting: Callable[[], object] | None = None
    ) -> None:
        self._server = server.rstrip("/")
        self._headers = {
            "Authorization": f"Bearer {secret}",
            "User-Agent": "shoal-agent",
            "Accept-Encoding": "identity",
        }
        self._stall_s, self.while_waiting = stall_s, while_waiting
        self._pace: Pace | None = None
        self.bytes_down = 0

    @functools.cached_property
    def _pool(self) -> urllib3.PoolManager:
        from edge_agent.update.paced import connections  # 4 MB that a device which never updates does not spend

        return connections(self._current_pace, stall_s=self._stall_s)

    def _current_pace(self) -> Pace:
        if self._pace is None:
            raise RuntimeError("an answer is read that nobody asked for")
        return self._pace

    def _begin(self, url: str, deadline_s: float | None) -> None:
        from edge_agent.update.paced import Pace

        self._pace = Pace(
            url, stall_s=self._stall_s, deadline_s=deadline_s, least_bytes_per_s=_LEAST_BYTES_PER_S,
            window_s=_WINDOW_S, while_waiting=self.while_waiting,
        )  # fmt: skip

    def url(self, path: str) -> str:
        """The URL of a path that begins with a slash."""
        return self._server + path

    @contextlib.contextmanager
    def get(self, url: str, *, offset: int = 0, deadline_s: float | None = None) -> Iterator[Body]:
        """Begin a GET.

        Args:
            offset: First byte wanted.
            deadline_s: Longest time spent waiting for the answer in all; None: as long as a least rate is kept.
        Raises:
            ServerRefused: A status other than 200 and 206.
            NetworkError: No connection, a stall, bytes that drip, or a body cut short; also while iterating.
        """
        headers = {**self._headers, "Range": f"bytes={offset}-"} if offset else self._headers
        self._begin(url, deadline_s)
        with _network_errors(url):
            response = self._pool.request(
                "GET", url, headers=headers, preload_content=False, redirect=False, retries=False
            )
        try:
            if response.status not in (200, 206):
                with _network_errors(url):
                    text = response.read(_ERROR_TEXT_BYTES).decode(errors="replace")
                raise ServerRefused(url, status=response.status, detail=text.strip() or "no explanation")
            resumed = response.status == 206
            part = response.headers.get("Content-Range", "")
            if resumed and not part.startswith(f"bytes {offset}-"):
                raise NetworkError(f"{url}: asked for bytes from {offset}, got {part!r}")
            size = part.rpartition("/")[2] if resumed else response.headers.get("Content-Length", "")
            yield Body(resumed, int(size) if size.isdecimal() else None, self._chunks(url, response))
        finally:
            # A body that was not read to its end leaves a connection that nobody can use again.
            response.close()

    def _chunks(self, url: str, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        with _network_errors(url):
            # As it comes: nothing was asked to be compressed, and a few bytes could unfold into gigabytes.
            for chunk in response.stream(_CHUNK_BYTES, decode_content=False):
                self.bytes_down += len(chunk)
                yield chunk
            response.release_conn()

    def resume(
        self,
        url: str,
        file: BinaryIO,
        *,
        most_bytes: int,
        size_bytes: int | None = None,
        received: Callable[[bytes], None],
    ) -> None:
        """Append to a file what it lacks: from its end on where the server can do that, else all of it anew.

        Nothing is verified. Where the server's file ends before ours does, ours is left as it is.

        Args:
            file: Opened for appending.
            most_bytes: Once the file is longer than that, the rest is left.
            size_bytes: Of the whole, where it is known: an answer that announces another length is not begun, so that
                one page of somebody else's does not cost what has come so far.
            received: Given each chunk when it is written; one that fills the file alone began it anew. What it raises
                ends the download.
        Raises:
            WrongBytes: Another length is announced.
            ServerRefused, NetworkError: As :meth:`get`; what came is in the file.
        """
        have = file.seek(0, os.SEEK_END)
        try:
            with self.get(url, offset=have) as body:
                if size_bytes is not None and body.size_bytes not in (None, size_bytes):
                    raise WrongBytes(f"{url}: {body.size_bytes} bytes are offered, {size_bytes} were signed")
                if have and not body.resumed:
                    file.seek(0)
                    file.truncate()
                for chunk in body.chunks:
                    file.write(chunk)
                    received(chunk)
                    if file.tell() > most_bytes:
                        return
        except ServerRefused as error:
            if error.status != _RANGE_NOT_SATISFIABLE:
                raise

    def read(self, url: str, *, limit_bytes: int, deadline_s: float = 60.0) -> bytes | None:
        """A small file.

        Returns:
            Its bytes, or None where it is longer than ``limit_bytes``.
        Raises:
            ServerRefused, NetworkError: As :meth:`get`; also where it takes longer than ``deadline_s`` in all.
        """
        parts: list[bytes] = []
        size = 0
        with self.get(url, deadline_s=deadline_s) as body:
            for chunk in body.chunks:
                size += len(chunk)
                if size > limit_bytes:
                    return None
                parts.append(chunk)
        return b"".join(parts)

    def close(self) -> None:
        """Close the connections."""
        pool = self.__dict__.pop("_pool", None)  # of a device that never asked there is none
        if pool is not None:
            pool.clear()


@contextlib.contextmanager
def _network_errors(url: str) -> Iterator[None]:
    import urllib3  # as above: whoever comes here has it already

    try:
        yield
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise NetworkError(f"{url}: {_CONNECTION.sub('', str(error))}") from error
