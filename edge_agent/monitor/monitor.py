"""Told of every request: counts it, draws samples, remembers it for feedback; reports all of it to the outbox.

``observe`` runs on the serving path and only notes things down (microseconds); ``flush``, called by the agent at each
report interval, turns them into messages.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_agent.contract.errors import CallerError, UnknownRequest
from edge_agent.contract.latency import bucket_of
from edge_agent.contract.messages import Label, LabelBatch, MetricsReport, ModelMetrics
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.topics import Stream
from edge_agent.monitor.board.board import Board
from edge_agent.monitor.machine import Machine
from edge_agent.monitor.outgoing import OutboxWriter, WaitingSamples, send_counts
from edge_agent.monitor.remembered import Remembered
from edge_agent.monitor.sampler import Sampler
from edge_agent.monitor.watched import Watched, class_called
from edge_agent.monitor.window import Window
from edge_agent.runtime.slots import LoadedModel

log = logging.getLogger(__name__)

REQUESTS_FILE = "requests.db"

# Newest packages of a model that stay known even while silent: a late label may be for one of them.
_PACKAGES_WATCHED = 8


class Monitor:
    """Watches all models of a device; every method may be called from any thread.

    Args:
        state: Folder for ``requests.db``, the requests that may still get a label.
        traffic: Gives the bytes sent up and received down since the agent started.
        clock: Unix time in seconds; ``steady``: seconds that never go back.
        uniform: Gives random numbers in [0, 1).
    Raises:
        StorageFull, StorageNotWritable: The folder cannot be written.
    """

    def __init__(
        self,
        outbox: OutboxWriter,
        state: Path,
        *,
        traffic: Callable[[], tuple[int, int]] = lambda: (0, 0),
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._outbox, self._traffic = outbox, traffic
        self._clock, self._steady, self._uniform = clock, steady, uniform
        self._remembered = Remembered(state / REQUESTS_FILE)
        self._machine = Machine(state)
        self._watched: dict[str, Watched] = {}
        self._samplers: dict[str, Sampler] = {}
        self._policies: dict[str, SamplingPolicy] = {}
        self._samples = WaitingSamples()
        self._from_ms = int(clock() * 1000)
        self._lock = threading.Lock()
        self._flushing = threading.Lock()

    @property
    def board(self) -> Board | None:
        """Reads the board that this runs on; None where it tells nothing."""
        return self._machine.board

    @property
    def over_budget(self) -> int:
        """Draws that the budget's hard cap refused."""
        return sum(sampler.over_budget for sampler in self._samplers.values())

    def observe(
        self,
        loaded: LoadedModel,
        request_id: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
        *,
        latency_us: float,
        group: str,
    ) -> bool:
        """Note an answered request; whether the application is asked for a label."""
        now, buckets = self._steady(), {bucket_of(latency_us): 1}
        with self._lock:
            watched = self._watched.get(loaded.digest) or self._watch(loaded)
            rows = len(outputs[watched.task])
            if rows == 1:
                ids = (_row_name(request_id) if "/" in request_id else request_id,)
                if watched.block.note_passing(ids, now, outputs, buckets):
                    return False
                self._make_room(watched, 1, now)
                draws = watched.take(ids, 1, now, inputs, outputs, buckets=buckets, group=group)
            elif rows:
                self._make_room(watched, rows, now, several=True)
                draws = watched.note(request_id, rows, now, inputs, outputs, buckets=buckets, group=group)
            else:  # nothing to count, draw or label
                watched.window.requests += 1
                watched.window.took(buckets)
                return False
        return any(draw.label_wanted for draw in draws.values()) if draws else False

    def observe_together(
        self,
        loaded: LoadedModel,
        request_ids: Sequence[str],
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
        *,
        buckets: Mapping[int, int],
    ) -> Collection[int]:
        """As :meth:`observe` of each, of one row and without a group; the indices of those asked for a label.

        Args:
            buckets: How many took how long, by the buckets of :mod:`edge_agent.contract.latency`.
        """
        now = self._steady()
        with self._lock:
            watched = self._watched.get(loaded.digest) or self._watch(loaded)
            if watched.block.note_passing(request_ids, now, outputs, buckets):
                return ()
            rows = len(request_ids)
            self._make_room(watched, rows, now)
            draws = watched.take(request_ids, rows, now, inputs, outputs, buckets=buckets, group="")
        return [row for row, draw in draws.items() if draw.label_wanted] if draws else ()

    def refused(self, loaded: LoadedModel, error: CallerError) -> None:  # noqa: ARG002 - a window counts no rules
        """Count a request that was wrong."""
        with self._lock:
            (self._watched.get(loaded.digest) or self._watch(loaded)).window.refused += 1

    def failed(self, loaded: LoadedModel) -> None:
        """Count a request that failed though it was right."""
        with self._lock:
            (self._watched.get(loaded.digest) or self._watch(loaded)).window.failed += 1

    def set_policies(self, policies: Mapping[str, SamplingPolicy]) -> None:
        """Sample these models by other policies from now on, and all others by those in their packages."""
        with self._lock:
            before, self._policies = self._policies, dict(policies)
            changed = {
                watched.name: watched
                for watched in self._watched.values()
                if before.get(watched.name) != self._policies.get(watched.name)
            }
            for name, latest in changed.items():
                policy = self._policies.get(name, latest.manifest.sampling)
                for watched in self._settled(name):
                    watched.lifetime_ms = int(policy.label_lifetime_s * 1000)
                latest.sampler.restart(policy, latest.sampler.threshold)

    def predicted(self, package: str) -> dict[str, int]:
        """Rows of a package by predicted class, the latest ones; of a fast model those that were looked at.

        Args:
            package: Its digest.
        """
        with self._lock:
            watched = self._watched.get(package)
            if watched is None:
                return {}
            self._settle(watched, self._steady())
            return {watched.class_name(index): count for index, count in watched.predicted.counts().items()}

    def feedback(
        self, loaded: LoadedModel, request_id: str, label: str | int, source: str, *, row: int | None = None
    ) -> bool:
        """Keep a label for an earlier request; it is in the outbox when this returns.

        Args:
            loaded: The model now under that name; the request may have been answered by an earlier one.
            label: A class name, or its index.
            row: Of a request of several rows; without it ``request_id`` may be a row's name, ``ID/INDEX``.
        Returns:
            Whether the row was sampled: without what was asked, nobody can learn from the label.
        Raises:
            UnknownRequest: Nobody remembers the request.
            MalformedRequest: The model has no such class.
            DeviceError: The outbox cannot take it.
        """
        model, now_ms = loaded.name, self._now_ms()
        with self._lock:
            self._settled(model)
        for name in _row_names(request_id, row):
            answered = self._remembered.find(model, name, now_ms)
            if answered is not None:
                request_id = name
                break
        else:
            asked = f"'{request_id}'" if row is None else f"'{request_id}', row {row}"
            raise UnknownRequest(
                f"model '{model}' does not remember request {asked}: it was never answered here, was a probe, "
                "its time for feedback is over, or it has other rows (of a request of several rows, name the row)"
            )
        with self._lock:
            answerer = self._watched.get(answered.package)
        text = class_called(label, answerer.manifest if answerer else loaded.manifest)
        told = Label(
            request_id=request_id,
            package=answered.package,
            label=text,
            prediction=answered.prediction,
            confidence=answered.confidence,
            inclusion_probability=answered.inclusion_probability,
            at_ms=answered.at_ms,
            labelled_at_ms=now_ms,
            source=source[:64],
        )
        self._outbox.append(Stream.LABELS, LabelBatch(model=model, labels=(told,)))
        return answered.sampled

    def flush(self, now: float | None = None) -> None:
        """Report everything since the last time.

        Args:
            now: Unix time in seconds; the clock's where None.
        Raises:
            DeviceError: The disk refuses; what it did not take is kept, and goes with the next report.
        """
        until_ms = int((self._clock() if now is None else now) * 1000)
        with self._flushing:
            windows = self._take_windows()
            try:
                self._remembered.persist(until_ms)
                self._samples.send(self._outbox)
                self._send_windows(windows, until_ms)
            except BaseException:
                self._give_back(windows)
                raise
            self._from_ms = until_ms
            self._forget_replaced(windows)

    def relieve(self) -> None:
        """Bring samples to the outbox where many wait in memory; to be called often, between reports.

        Raises:
            DeviceError: The disk refuses; they are kept.
        """
        if not self._samples.are_many:
            return
        with self._flushing:
            with self._lock:
                for watched in self._watched.values():
                    self._settle(watched, self._steady())
            self._remembered.persist(self._now_ms())  # before them: what is asked for will be answered
            self._samples.send(self._outbox)

    def close(self) -> None:
        """Close the file of remembered requests, and stop reading the board; flush before."""
        self._remembered.close()
        self._machine.close()

    def _make_room(self, watched: Watched, rows: int, now: float, *, several: bool = False) -> None:
        """Begin another block where the current one does not take so many rows."""
        if watched.is_over(rows, now, several=several):
            self._settle(watched, now)
            watched.begin(rows, now, several=several)

    def _settled(self, model: str) -> list[Watched]:
        """All packages of a model, with no row left to look at: they share what chooses among rows."""
        found = [watched for watched in self._watched.values() if watched.name == model]
        for watched in found:
            self._settle(watched, self._steady())
        return found

    def _settle(self, watched: Watched, now: float) -> None:
        """Look at the rows of a block that is over."""
        try:
            rows = watched.settle(now)
            if rows is not None:
                self._remembered.add(watched.name, rows)
        except Exception:
            # A model may give anything. What of it cannot be counted must not keep the rest from being reported.
            manifest = watched.manifest
            log.exception("answers of model %s %s could not be counted", manifest.name, manifest.version)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _watch(self, loaded: LoadedModel) -> Watched:
        policy = self._policies.get(loaded.name, loaded.manifest.sampling)
        threshold = loaded.reference.margin_threshold
        sampler = self._samplers.get(loaded.name)
        if sampler is None:
            sampler = self._samplers[loaded.name] = Sampler(policy, threshold=threshold, uniform=self._uniform)
        else:
            self._settled(loaded.name)
            sampler.restart(policy, threshold)
        watched = self._watched[loaded.digest] = Watched.begin_watch(
            loaded, sampler, policy, keep=self._samples.keep, now_ms=self._now_ms
        )
        return watched

    def _take_windows(self) -> dict[str, Window]:
        taken: dict[str, Window] = {}
        with self._lock:
            for digest, watched in self._watched.items():
                self._settle(watched, self._steady())
                taken[digest], watched.window = watched.window, Window()
        return taken

    def _give_back(self, windows: dict[str, Window]) -> None:
        with self._lock:
            for digest, window in windows.items():
                watched = self._watched[digest]
                window.merge(watched.window)
                watched.window = window

    def _forget_replaced(self, reported: Mapping[str, Window]) -> None:
        """Let go of packages replaced long ago, once they were silent for a window: a device sees many versions."""
        with self._lock:
            of_model: dict[str, list[str]] = {}
            for digest, watched in self._watched.items():
                of_model.setdefault(watched.name, []).append(digest)
            for digests in of_model.values():
                for digest in digests[:-_PACKAGES_WATCHED]:
                    silent = digest in reported and reported[digest].is_empty
                    watched = self._watched[digest]
                    if silent and watched.window.is_empty and watched.is_empty:
                        del self._watched[digest]

    def _send_windows(self, windows: dict[str, Window], until_ms: int) -> None:
        """Append what happened to each package, and what the machine does."""
        models: list[ModelMetrics] = []
        for digest, window in windows.items():
            manifest = self._watched[digest].manifest
            send_counts(
                self._outbox,
                window,
                model=manifest.name,
                package=digest,
                from_ms=self._from_ms,
                until_ms=until_ms,
            )
            if window.requests or window.refused or window.failed:
                models.append(window.metrics(manifest.name, manifest.version, digest))
        metrics = MetricsReport(
            from_ms=self._from_ms,
            until_ms=until_ms,
            models=tuple(models),
            machine=self._machine.metrics(outbox=self._outbox.size(), traffic=self._traffic()),
        )
        self._outbox.append(Stream.METRICS, metrics)


def _row_name(request_id: str) -> str:
    """What the row of a request of one row is called: as the request, which must not look like a row of another."""
    _, slash, last = request_id.rpartition("/")
    return f"{request_id}/" if slash and (last.isdecimal() or not last) else request_id


def _row_names(request_id: str, row: int | None) -> list[str]:
    """What the row that a label is for may be called, the likeliest first; of a request of one its 0 may be told."""
    alone = _row_name(request_id)
    if row is None:
        return [alone, request_id, _row_name(request_id.removesuffix("/0"))]
    return [f"{request_id}/{row}", alone] if row == 0 else [f"{request_id}/{row}"]
