"""Where files of packages come from: mirrors first, then the server itself; and how far a download has come."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

from edge_agent.update.bandwidth import Bandwidth
from edge_agent.update.server_files import ServerFiles

_log = logging.getLogger(__name__)


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


class Sources:
    """The sources of one device.

    Args:
        server: The fleet server, which is asked last, and counts what mirrors gave.
        mirrors: Base URLs, asked in this order.
    """

    def __init__(self, server: ServerFiles, mirrors: Sequence[str] = (), *, bandwidth: Bandwidth | None = None) -> None:
        self.server = server
        self._mirrors = [MirrorFiles(mirror, server.while_waiting) for mirror in mirrors]
        self._bandwidth = bandwidth or Bandwidth(0)
        self._dropped: set[int] = set()
        self._update = ""
        self.progress: Progress | None = None

    def begin(self, update: str, wanted_bytes: int) -> None:
        """Files of an update are about to be fetched; mirrors that lied in an earlier one get another chance."""
        if update != self._update:
            self._update = update
            self._dropped.clear()
        self.progress = Progress(done_bytes=0, wanted_bytes=wanted_bytes, received_bytes=0)

    def end(self) -> None:
        """No download is under way any more."""
        self.progress = None

    def each(self) -> list[ServerFiles]:
        """Whom to ask, in this order; the server is the last."""
        return [*(mirror for mirror in self._mirrors if id(mirror) not in self._dropped), self.server]

    def drop(self, source: ServerFiles, why: Exception) -> None:
        """Ask this mirror no more in this update: what it gave is not what was signed."""
        _log.warning("mirror %s is not asked any more for this update: %s", source.url(""), why)
        self._dropped.add(id(source))

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
