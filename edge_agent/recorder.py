"""What a program keeps and reports of the models that it runs by itself, in a state folder of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_agent import __version__
from edge_agent.config import ReportSettings, prepare_state
from edge_agent.contract.enrolment import Enrolment
from edge_agent.contract.errors import CallerError
from edge_agent.contract.messages import Desired, Reported, ReportedModel, UpdateStep
from edge_agent.identity import identity_to_serve_with
from edge_agent.link.link import Link
from edge_agent.monitor.machine import hardware
from edge_agent.monitor.monitor import Monitor
from edge_agent.outbox.outbox import Outbox
from edge_agent.reporter import Reporter, pace_s
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.state_lock import lock_state

log = logging.getLogger(__name__)

# Until the state folder's owner has enrolled, its messages are numbered under these names, and wait.
_NO_FLEET, _NO_DEVICE = "none", "none"


class Recorder:
    """The parts of an agent that watch and report, without those that serve and update.

    It samples, and reports at the pace, that the fleet wishes; packages that the fleet assigns are not installed, for
    it is the program that chose what it runs.

    Args:
        state: Made where it is missing; where it holds an identity, reports go to its fleet.
        slots: Where the program's models are.
    Raises:
        ConfigurationError: An agent, or another program, uses the state folder.
        StorageFull, StorageNotWritable: It cannot be used.
    """

    def __init__(self, state: Path, slots: Slots, settings: ReportSettings) -> None:
        prepare_state(state)
        self._slots = slots
        self._started_at_ms = time.time_ns() // 1_000_000
        self._desired_revision = 0
        self._hardware = hardware()
        # It may be this very program: it has loaded another model so, or the same one before.
        self._lock = lock_state(state, way_out="close that model or stop the agent, or give another folder as state")
        try:
            identity, trouble = identity_to_serve_with(state, mend=True)
            if trouble:
                log.error("%s", trouble)
            self._interval_s = pace_s(settings.interval_s, has_fleet=identity is not None)
            self._outbox = open_outbox(state, identity, settings)
            self._link = Link(identity, self._outbox, on_desired=self._take_desired) if identity else None
            self._monitor = Monitor(self._outbox, state, traffic=self._traffic)
        except BaseException:
            self._lock.close()
            raise
        self._reporter = Reporter(
            flush=self._monitor.flush,
            relieve=self._monitor.relieve,
            twin=self._reported,
            publish=self._publish,
            interval_s=self._interval_s,
        )

    def start(self) -> None:
        """Begin to report."""
        self._reporter.start()
        if self._link is not None:
            self._link.start()

    def close(self) -> None:
        """Report a last time, and end; what the fleet has not acknowledged stays in the state folder."""
        self._reporter.stop()
        if self._link is not None:
            self._link.stop()
        self._monitor.close()
        self._outbox.close()
        self._lock.close()

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
        """Note an answered request.

        The arrays are the program's own, which it may write to as soon as it has its answer, while the monitor looks
        at them later: it is given copies.
        """
        return self._monitor.observe(
            loaded, request_id, _copies(inputs), _copies(outputs), latency_us=latency_us, group=group
        )

    def refused(self, loaded: LoadedModel, error: CallerError) -> None:
        """Count a request that was wrong."""
        self._monitor.refused(loaded, error)

    def failed(self, loaded: LoadedModel) -> None:
        """Count a request that failed though it was right."""
        self._monitor.failed(loaded)

    def feedback(
        self, loaded: LoadedModel, request_id: str, label: str | int, source: str, *, row: int | None = None
    ) -> bool:
        """Keep a label for an earlier request; see :meth:`edge_agent.monitor.monitor.Monitor.feedback`."""
        return self._monitor.feedback(loaded, request_id, label, source, row=row)

    def _take_desired(self, desired: Desired) -> None:
        """Called in the link's thread: nothing here waits."""
        self._monitor.set_policies(desired.sampling)
        wanted_s = desired.report_interval_s
        self._reporter.set_interval(self._interval_s if wanted_s is None else wanted_s)
        self._desired_revision = max(self._desired_revision, desired.revision)
        if desired.models:
            log.info("the fleet assigns packages, which a model loaded in a program does not follow: run an agent")

    def _reported(self) -> Reported:
        models = {
            loaded.name: ReportedModel(
                version=loaded.version,
                package=loaded.digest,
                step=UpdateStep.COMMITTED,
                requests=loaded.requests,
                failed=loaded.failed,
            )
            for loaded in self._slots.models()
        }
        return Reported(
            agent_version=__version__,
            started_at_ms=self._started_at_ms,
            desired_revision=self._desired_revision,
            hardware=self._hardware,
            models=models,
            api="in-process",
        )

    def _publish(self, reported: Reported) -> None:
        if self._link is not None:
            self._link.report(reported)

    def _traffic(self) -> tuple[int, int]:
        return (self._link.bytes_up, self._link.bytes_down) if self._link is not None else (0, 0)


def _copies(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array.copy() for name, array in tensors.items()}


def open_outbox(state: Path, identity: Enrolment | None, settings: ReportSettings) -> Outbox:
    """The outbox of a state folder.

    Raises:
        StorageFull, StorageNotWritable: It cannot be used.
    """
    return Outbox(
        state / "outbox.db",
        fleet=identity.fleet if identity else _NO_FLEET,
        device=identity.device if identity else _NO_DEVICE,
        limit_bytes=settings.outbox_limit_mib << 20,
    )
