"""Where files of packages come from: mirrors first, then the server itself; and how far a download has come."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence

from edge_agent.contract.errors import NetworkError
from edge_agent.update.bandwidth import Bandwidth
from edge_agent.update.server_files import ServerFiles

_log = logging.getLogger(__name__)
# How long a source is not asked that gave wrong bytes: so long after the first time, then double, up to the last.
_REST_S, _LONGEST_REST_S = 30.0, 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the files of an update have come.

    Args:
        done_bytes, wanted_bytes: Of the files that were not here yet, whole.
        received_bytes: What has come over the network for them: less, where files come as differences.
    """

    done_bytes: int
    wanted_bytes: int
    received_bytes: int


class MirrorFiles(ServerFiles):
    """Files of a mirror: it gets no secret and no trust."""

    def __init__(self, mirror: str, while_waiting: Callable[[], object] | None = None) -> None:
        super().__init__(mirror, "", while_waiting=while_waiting)
        del self._headers["Authorization"]


@dataclasses.dataclass(frozen=True)
class _Rest:
    """A source is not asked for one update until some time.

    Args:
        pause_s: How long in all; ``until``: monotonic seconds.
        why: What to say meanwhile.
    """

    pause_s: float
    until: float
    why: str


class Sources:
    """The sources of one device.

    Args:
        server: The fleet server, which is asked last, and counts what mirrors gave.
        mirrors: Base URLs, asked in this order.
        monotonic: Seconds that never go back.
    """

    def __init__(
        self,
        server: ServerFiles,
        mirrors: Sequence[str] = (),
        *,
        bandwidth: Bandwidth | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.server = server
        self._mirrors = [MirrorFiles(mirror, server.while_waiting) for mirror in mirrors]
        self._bandwidth = bandwidth or Bandwidth(0)
        self._monotonic = monotonic
        self._update = ""
        self._resting: dict[tuple[str, ServerFiles], _Rest] = {}
        self.progress: Progress | None = None

    def turn_to(self, update: str) -> None:
        """What is fetched from now on is of this update; who lied in another one is asked."""
        self._update = update
        over = self._monotonic() - _LONGEST_REST_S
        self._resting = {key: rest for key, rest in self._resting.items() if rest.until > over}

    def begin(self, update: str, wanted_bytes: int) -> None:
        """Files of an update are about to be fetched."""
        self.turn_to(update)
        self.progress = Progress(done_bytes=0, wanted_bytes=wanted_bytes, received_bytes=0)

    def end(self) -> None:
        """No download is under way any more."""
        self.progress = None

    def each(self) -> list[ServerFiles]:
        """Whom to ask now, in this order; the server is the last.

        Raises:
            NetworkError: All of them rest.
        """
        rests = {source: self._rest_of(source) for source in (*self._mirrors, self.server)}
        awake = [source for source, rest in rests.items() if rest is None or rest.until <= self._monotonic()]
        if not awake and (rest := rests[self.server]) is not None:
            raise NetworkError(rest.why)
        return awake

    def rest(self, source: ServerFiles, error: Exception) -> NetworkError:
        """Do not ask this source for this update for a while: what it gave is not what was signed.

        The signature stands, so the bytes are at fault: a login page of somebody's network, a proxy, a disk. That may
        pass, but whoever sends them should not be asked for the same again and again.

        Returns:
            The error, with when it is asked again.
        """
        before = self._rest_of(source)
        pause_s = min(before.pause_s * 2, _LONGEST_REST_S) if before is not None else _REST_S
        why = f"{error}: thrown away, as it is not what was signed; asked again after {_duration(pause_s)}"
        self._resting[self._update, source] = _Rest(pause_s, self._monotonic() + pause_s, why)
        _log.warning("%s", why)
        return NetworkError(why)

    def _rest_of(self, source: ServerFiles) -> _Rest | None:
        return self._resting.get((self._update, source))

    def received(self, source: ServerFiles, count: int, while_waiting: Callable[[], None]) -> None:
        """Note bytes that came, and hold on where they come too fast."""
        if source is not self.server:
            self.server.bytes_down += count
        if self.progress is not None:
            self.progress = dataclasses.replace(self.progress, received_bytes=self.progress.received_bytes + count)
        while_waiting()
        self._bandwidth.take(count, while_waiting)

    def done(self, count: int) -> None:
        """Note bytes of files that are here now."""
        if self.progress is not None:
            self.progress = dataclasses.replace(self.progress, done_bytes=self.progress.done_bytes + count)

    def close(self) -> None:
        """Close the connections to mirrors; the server's are not this one's."""
        for mirror in self._mirrors:
            mirror.close()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
