"""From what was noted to messages in the outbox: samples that wait for it, and the counts of a window."""

from __future__ import annotations

import collections
import logging
import threading
from typing import NamedTuple, Protocol

from edge_agent.contract.envelope import Message
from edge_agent.contract.messages import ProfileReport, Sample, SampleBatch
from edge_agent.contract.topics import Stream
from edge_agent.monitor.samples import ROOM_BYTES, counts_in_parts, encoded_bytes, parts
from edge_agent.monitor.window import Window

log = logging.getLogger(__name__)

# Samples that wait for the disk to take them; beyond it the oldest go, counted.
_WAITING_BYTES = 16 * 1024 * 1024
# More than this does not wait for the next report: without a fleet that is ten minutes away.
_MANY_BYTES = 512 * 1024


class OutboxWriter(Protocol):
    """Where messages are safe once ``append`` has returned."""

    def append(self, stream: Stream, body: Message) -> int:
        """Keep a message until the server has it; its sequence number.

        Raises:
            DeviceError: The disk refuses.
        """

    def count_lost(self, stream: Stream, count: int = 1) -> None:
        """Report ``count`` records as lost."""

    def size(self) -> tuple[int, int]:
        """Messages and bytes that wait."""


class _Waiting(NamedTuple):
    model: str
    size: int
    sample: Sample


class WaitingSamples:
    """Samples on their way to the outbox; every method may be called from any thread."""

    def __init__(self) -> None:
        self._samples: collections.deque[_Waiting] = collections.deque()
        self._bytes = 0
        self._lost = 0  # since the last report
        self._told: set[str] = set()  # models whose samples fit no message: once is enough
        self._lock = threading.Lock()

    @property
    def are_many(self) -> bool:
        """Whether they take so much memory that they should leave it soon."""
        return self._bytes > _MANY_BYTES

    def keep(self, model: str, sample: Sample) -> None:
        """Take in a sample of a model; what there is no room for is counted as lost."""
        size = encoded_bytes(sample)
        with self._lock:
            if size > ROOM_BYTES:
                self._lost += 1
                if model not in self._told:
                    self._told.add(model)
                    log.warning(
                        "a sample of %s takes %d bytes, a message holds %d: none is sent, each is counted as lost",
                        model, size, ROOM_BYTES,
                    )  # fmt: skip
                return
            self._samples.append(_Waiting(model, size, sample))
            self._bytes += size
            while self._bytes > _WAITING_BYTES:
                self._bytes -= self._samples.popleft().size
                self._lost += 1

    def send(self, outbox: OutboxWriter) -> None:
        """Append all in batches; each leaves memory once the outbox has it. One caller at a time.

        Raises:
            DeviceError: The disk refuses.
        """
        with self._lock:
            waiting = list(self._samples)
            lost, self._lost = self._lost, 0
        if lost:
            outbox.count_lost(Stream.SAMPLES, lost)
        by_model: dict[str, list[_Waiting]] = {}
        for entry in waiting:
            by_model.setdefault(entry.model, []).append(entry)
        for model, entries in by_model.items():
            for part in parts(entries, [entry.size for entry in entries]):
                outbox.append(Stream.SAMPLES, SampleBatch(model=model, samples=tuple(entry.sample for entry in part)))
                sent = {id(entry) for entry in part}
                with self._lock:
                    self._samples = collections.deque(entry for entry in self._samples if id(entry) not in sent)
                    self._bytes = sum(entry.size for entry in self._samples)


def send_counts(outbox: OutboxWriter, window: Window, *, model: str, package: str, from_ms: int, until_ms: int) -> None:
    """Append a window's counts; what the outbox has is taken out of it, so that to give it back doubles nothing.

    Raises:
        DeviceError: The disk refuses.
    """
    rows = window.counted
    for part in counts_in_parts(window.counts):
        report = ProfileReport(model=model, package=package, from_ms=from_ms, until_ms=until_ms, rows=rows, counts=part)
        outbox.append(Stream.PROFILES, report)
        window.counts = {name: counts for name, counts in window.counts.items() if name not in part}
        rows = window.counted = 0  # the rows stand in the first part alone: receivers add them up
