"""Files of the fleet server over HTTP: the device's secret, time limits, length limits, and nothing trusted."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from edge_agent.contract.errors import NetworkError, ServerRefused

if TYPE_CHECKING:
    import urllib3

    from edge_agent.update.paced import Pace

_CHUNK_BYTES = 64 * 1024
_ERROR_TEXT_BYTES = 300
# Slower than this over a minute of waiting is no connection, or somebody who plays for time.
_LEAST_BYTES_PER_S, _WINDOW_S = 64.0, 60.0


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
    def get(
        self, url: str, *, offset: int = 0, deadline_s: float | None = None
    ) -> Iterator[tuple[bool, Iterator[bytes]]]:
        """Begin a GET.

        Args:
            offset: First byte wanted.
            deadline_s: Longest time spent waiting for the answer in all; None: as long as a least rate is kept.
        Yields:
            Whether the body begins at ``offset`` (else at 0), and the body in chunks.
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
            resumed = response.status == 206 and _begins_at(response.headers.get("Content-Range", ""), offset)
            if response.status == 206 and not resumed:
                raise NetworkError(
                    f"{url}: asked for bytes from {offset}, got {response.headers.get('Content-Range')!r}"
                )
            yield resumed, self._chunks(url, response)
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

    def read(self, url: str, *, limit_bytes: int, deadline_s: float = 60.0) -> bytes | None:
        """A small file.

        Returns:
            Its bytes, or None where it is longer than ``limit_bytes``.
        Raises:
            ServerRefused, NetworkError: As :meth:`get`; also where it takes longer than ``deadline_s`` in all.
        """
        parts: list[bytes] = []
        size = 0
        with self.get(url, deadline_s=deadline_s) as (_, chunks):
            for chunk in chunks:
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
        raise NetworkError(f"{url}: {error}") from error


def _begins_at(content_range: str, offset: int) -> bool:
    return content_range.startswith(f"bytes {offset}-")
