"""A worker's hold on a run: renewed by a thread of its own, and asked for again before what cannot be undone."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import Self, TypeVar

from edge_agent.contract.errors import NetworkError, ServerRefused
from edge_agent.contract.runs import RunFile, RunProgress
from trainer.errors import TokenRefused
from trainer.server_client import LeaseLost, RunCancelled, ServerClient
from trainer.work.run_log import RunLog
from trainer.work.run_process import ProgressLine

log = logging.getLogger(__name__)

T = TypeVar("T")

_LEAST_S = 0.5  # between heartbeats, whatever the news
_MOST_PIECES = 8  # of the log, sent at the end


class GivenUp(Exception):
    """The run is not this worker's any more, or the worker is stopping; whatever was found is not wanted."""


class Lease:
    """Renews the lease while it is held, with the newest progress.

    Args:
        stop: Set when the worker is to end.
        heartbeat_s: Between renewals.
        retry_s: Between attempts at what the server's absence has kept from being done.
        written: What the run writes; heartbeats carry it.
    """

    def __init__(
        self,
        client: ServerClient,
        run: RunFile,
        stop: threading.Event,
        *,
        heartbeat_s: float,
        retry_s: float,
        written: RunLog,
    ) -> None:
        self.run, self._log = run, written
        self._metrics: dict[str, float] = {}  # measured since the last heartbeat
        self._metrics_lock, self._renewing = threading.Lock(), threading.Lock()
        self._client, self._stop, self._heartbeat_s, self._retry_s = client, stop, heartbeat_s, retry_s
        self._lost, self._cancelled = "", False
        self._latest = ProgressLine("start", 0.0)
        self._news, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        self._news.set()
        self._thread.join()

    @property
    def lost(self) -> bool:
        """Whether the run is another's now."""
        return bool(self._lost)

    @property
    def cancelled(self) -> bool:
        """Whether a person has ended the run."""
        return self._cancelled

    @property
    def over(self) -> bool:
        """Whether to stop working on the run."""
        return bool(self._lost) or self._stop.is_set()

    def check(self) -> None:
        """Go on only while the run is this worker's.

        Raises:
            GivenUp: It is not, or the worker is stopping.
        """
        if self.over:
            raise GivenUp(self._lost or "the worker is stopping")

    def follow_log(self) -> None:
        """The run's folder is its own now: heartbeats carry what it writes."""
        self._log.begin()

    def say(self, line: ProgressLine) -> None:
        """Tell the server soon; of several in a row only the newest, but every message stands in the log."""
        changed = line.stage != self._latest.stage
        if line.message and (changed or line.message != self._latest.message):
            self._log.note(f"{line.stage} {line.fraction:.0%}: {line.message}")
        self._latest = line
        with self._metrics_lock:
            self._metrics |= {name: value for name, value in line.metrics.items() if math.isfinite(value)}
        if changed or line.metrics:
            self._news.set()

    def renew(self) -> None:
        """Ask the server at once whether the run is still this worker's.

        Raises:
            LeaseLost, NetworkError: As :meth:`ServerClient.progress`.
        """
        with self._renewing:  # the heartbeat and the end of a run at once would send one piece of the log twice
            self._renew()

    def _renew(self) -> None:
        line, piece = self._latest, self._log.piece()
        with self._metrics_lock:
            metrics, self._metrics = self._metrics, {}
        progress = RunProgress(
            fence=self.run.fence,
            stage=line.stage,
            fraction=line.fraction,
            message=line.message,
            metrics=metrics,
            log=piece,
        )
        try:
            self._client.progress(self.run.run, progress)
        except NetworkError:
            with self._metrics_lock:
                self._metrics = metrics | self._metrics
            raise
        self._log.sent(piece)

    def tell_all(self) -> None:
        """Send what the run has written to its end; a server that is away is not waited for."""
        try:
            for _ in range(_MOST_PIECES):
                if not self.over and self._log.piece():
                    self.renew()
        except LeaseLost as error:
            self._lose(error)
        except NetworkError as error:
            log.warning("the end of the log of run %s was not sent: %s", self.run.run, error)

    def persist(self, action: Callable[[], T]) -> T:
        """Do what needs the server, again and again while it is away: it stands for minutes of work.

        Raises:
            GivenUp: The run was lost, or the worker is stopping.
            ShoalError: What ``action`` raises that trying again does not cure.
        """
        while True:
            self.check()
            try:
                return action()
            except LeaseLost as error:
                self._lose(error)
            except NetworkError as error:
                if isinstance(error, ServerRefused) and error.status < 500:
                    raise
                log.warning("%s; trying again in %g s", error, self._retry_s)
                self._stop.wait(self._retry_s)

    def _lose(self, error: LeaseLost) -> None:
        self._lost, self._cancelled = str(error), isinstance(error, RunCancelled)

    def _beat(self) -> None:
        while not self._ended.is_set() and not self._lost:
            try:
                self.renew()
            except LeaseLost as error:
                self._lose(error)
            except TokenRefused as error:
                self._lost = str(error)
            except NetworkError as error:
                # The lease outlives a few missed beats; the next one may get through.
                log.warning("heartbeat of run %s: %s", self.run.run, error)
            self._ended.wait(min(_LEAST_S, self._heartbeat_s))
            self._news.wait(max(0.0, self._heartbeat_s - _LEAST_S))
            self._news.clear()
