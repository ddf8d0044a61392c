"""The agent: builds the device's parts, hands them to each other, runs them and stops them in order."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil

from edge_agent import __version__
from edge_agent.config import ADDRESS_FILE, AgentConfig, prepare_state
from edge_agent.contract.errors import DeviceError
from edge_agent.contract.messages import Desired, Event, EventKind, Reported
from edge_agent.contract.topics import Stream
from edge_agent.durable import write_durably
from edge_agent.identity import identity_to_serve_with
from edge_agent.link.link import Link
from edge_agent.monitor.machine import hardware
from edge_agent.monitor.monitor import Monitor
from edge_agent.recorder import open_outbox
from edge_agent.reporter import Reporter, pace_s
from edge_agent.runtime import cpus
from edge_agent.runtime.asked_inputs import ASKED_FILE, AskedInputs
from edge_agent.runtime.budget import MemoryBudget, ThreadBudget, thread_budget
from edge_agent.runtime.catalogue import Catalogue
from edge_agent.runtime.gpu.presence import may_have_gpu
from edge_agent.runtime.memory import Tidying, give_back
from edge_agent.runtime.optimised import OptimisedModels
from edge_agent.runtime.package import Tolerance
from edge_agent.runtime.repository import Repository
from edge_agent.runtime.shadow import Shadows
from edge_agent.runtime.slots import Slots
from edge_agent.serving.local_api import LocalApi
from edge_agent.state_lock import lock_state
from edge_agent.update.installer import Installer
from edge_agent.update.preparing import Device
from edge_agent.update.seen import Sight
from edge_agent.update.update_thread import UpdateThread

if TYPE_CHECKING:
    from edge_agent.runtime.acceleration import Acceleration

_log = logging.getLogger(__name__)
_HOW_TO_BEGIN = (
    "stop the agent and run `shoal-agent install FOLDER` with a package, or put the package's folder into the one that "
    "runtime.models in the agent's settings names, and load the model"
)


class Agent:
    """All parts of one device.

    Raises:
        AddressInUse: Another program listens where the API should; found before anything else is started.
        StorageFull, StorageNotWritable: The state folder cannot be used.
        ConfigurationError: Another agent runs on the same state folder.
    """

    def __init__(self, config: AgentConfig) -> None:
        self._state = Path(config.state)
        prepare_state(self._state)
        _warn_if_open(self._state)
        self._lock = lock_state(self._state)
        self._enrolment, self._trouble = identity_to_serve_with(self._state, mend=True)
        self._started_at_ms = _now_ms()
        self._desired_revision = 0
        self._interval_s = pace_s(config.report.interval_s, has_fleet=self._enrolment is not None)
        self._hardware = hardware()
        self._threads = thread_budget(
            config.runtime.threads, config.runtime.threads_per_model, available=cpus.available()
        )
        self._slots = Slots(when_empty=_HOW_TO_BEGIN)
        self._acceleration = _acceleration(config, self._slots, self._tell)
        memory = MemoryBudget(config.runtime.memory_mib << 20)
        self._repository = _repository(config, self._slots, self._threads, memory, self._acceleration)
        identity = self._enrolment
        self._outbox = open_outbox(self._state, identity, config.report)
        self._link = Link(identity, self._outbox, on_desired=self._take_desired) if identity else None
        self._monitor = Monitor(self._outbox, self._state, traffic=self._traffic)
        self._shadows = Shadows(self._monitor, self._slots)
        self._asked = AskedInputs(self._slots.take_versions_asked)
        self._asked.restore(self._state / ASKED_FILE)
        self._installer = Installer(
            self._state,
            identity,
            self._slots,
            self._tell,
            self._repository.prepare,
            serve=self._repository.serve,
            settings=config.updates,
            shadows=self._shadows,
            seen=Sight(self._monitor.predicted),
            device=Device(hardware=self._hardware, memory=memory, still_fits=self._asked.refusals),
        )
        self._repository.follow(self._installer)
        self._updates = UpdateThread(self._installer)
        self._api = LocalApi(
            config.api,
            slots=self._slots,
            repository=self._repository,
            watcher=self._shadows,
            board=self._monitor.board,
            threads=self._threads.at_once,
            agent_version=__version__,
            asked=self._asked,
            trouble=self._trouble,
        )
        self._reporter = Reporter(
            flush=self._flush,
            relieve=self._monitor.relieve,
            twin=self._reported,
            publish=self._publish,
            interval_s=self._interval_s,
        )
        self._tidying = Tidying()

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM, then stop every part in order."""
        try:
            self._start()
            self._api.run()
        finally:
            self.close()

    def close(self) -> None:
        """Stop: first what makes messages, then what sends them."""
        _log.info("stopping")
        (self._state / ADDRESS_FILE).unlink(missing_ok=True)
        if self._acceleration is not None:
            self._acceleration.close()  # before the updates, which may wait for an engine
        self._updates.stop()
        self._shadows.close()
        self._tidying.stop()
        self._repository.close()
        self._reporter.stop()
        if self._link is not None:
            self._link.stop()
        self._api.close()
        self._slots.close()
        if self._acceleration is not None:
            self._acceleration.let_go()
        self._monitor.close()
        self._outbox.close()
        self._lock.close()
        _log.info("stopped")

    def _start(self) -> None:
        self._installer.start()
        self._repository.start()
        give_back()  # what reading packages and loading models has left behind
        self._tell(Event(kind=EventKind.AGENT_STARTED, at_ms=_now_ms(), detail={"version": __version__}))
        self._updates.start()
        self._reporter.start()
        self._tidying.start()
        if self._link is not None:
            self._link.start()
        elif self._trouble:
            _log.error("%s", self._trouble)
            self._tell(Event(kind=EventKind.STORAGE, at_ms=_now_ms(), reason=self._trouble))
        else:
            _log.warning(
                "this device has not enrolled: it serves what it holds, and reports to nobody; "
                "to join a fleet: shoal-agent enrol --help"
            )
        address = {**self._api.addresses, "pid": os.getpid(), "version": __version__}
        path = self._state / ADDRESS_FILE
        try:
            write_durably(path, msgspec.json.encode(address), mode=0o600)
        except OSError as error:  # who needs the file will miss it; applications get their answers all the same
            _log.warning("%s could not be written: %s", path, error.strerror)
        served = ", ".join(f"{loaded.name} {loaded.version}" for loaded in self._slots.models())
        if not served:
            served = "none of its models" if self._slots.index() else f"no model yet: {_HOW_TO_BEGIN}"
        addresses = [each for each in dict.fromkeys(self._api.addresses.values()) if each]
        if not addresses:
            _log.warning("nobody can ask this agent: set host, unix_socket, frames_socket or grpc_socket under [api]")
        _log.info("listening on %s, serving %s", ", ".join(addresses) or "no address", served)

    def _take_desired(self, desired: Desired) -> None:
        """Called in the link's thread: nothing here waits."""
        self._monitor.set_policies(desired.sampling)
        wanted_s = desired.report_interval_s
        self._reporter.set_interval(self._interval_s if wanted_s is None else wanted_s)
        self._desired_revision = max(self._desired_revision, desired.revision)
        self._updates.submit(desired)

    def _tell(self, event: Event) -> None:
        # A reason says it all but for the step that it led to.
        rest = [event.detail.get("step"), event.reason] if event.reason else [event.detail]
        said = [event.kind.value, event.model, event.package[:12], *rest]
        _log.info("%s", " ".join(str(part) for part in said if part))
        try:
            self._outbox.append(Stream.EVENTS, event)
        except DeviceError as error:
            self._outbox.count_lost(Stream.EVENTS)
            _log.warning("event %s could not be kept: %s", event.kind.value, error)

    def _flush(self) -> None:
        try:
            self._asked.save(self._state / ASKED_FILE)
        except OSError as error:  # learned anew after the next start
            _log.warning("%s could not be written: %s", self._state / ASKED_FILE, error.strerror)
        self._monitor.flush()

    def _traffic(self) -> tuple[int, int]:
        """Bytes sent and received over the network since the start."""
        up, down = (self._link.bytes_up, self._link.bytes_down) if self._link is not None else (0, 0)
        return up, down + self._installer.bytes_down

    def _reported(self) -> Reported:
        return Reported(
            agent_version=__version__,
            started_at_ms=self._started_at_ms,
            desired_revision=self._desired_revision,
            hardware=self._hardware,
            models=self._installer.reported(),
            api=self._api.addresses["api"],
        )

    def _publish(self, reported: Reported) -> None:
        if self._link is not None:
            self._link.report(reported)


def _repository(
    config: AgentConfig, slots: Slots, threads: ThreadBudget, memory: MemoryBudget, acceleration: Acceleration | None
) -> Repository:
    settings, state = config.runtime, Path(config.state)
    return Repository(
        slots,
        Catalogue(Path(settings.models) if settings.models else None),
        policy=settings.load,
        threads=threads,
        memory=memory,
        cache=OptimisedModels(state / "optimised", own=state),
        idle_unload_s=settings.idle_unload_s,
        acceleration=acceleration,
        precision=settings.precision,
    )


def _acceleration(config: AgentConfig, slots: Slots, tell: Callable[[Event], None]) -> Acceleration | None:
    """What finds models a faster runtime; None where there is no GPU, or none is to be used."""
    settings, state = config.accelerator, Path(config.state)
    if settings.use == "off" or (settings.use == "auto" and not may_have_gpu()):
        return None
    # Only here: a device without a GPU spends nothing on it.
    from edge_agent.runtime.acceleration import Acceleration
    from edge_agent.runtime.accelerator import Accelerator, AcceleratorRules
    from edge_agent.runtime.runtimes import RUNTIMES_FILE, RuntimesFile

    rules = AcceleratorRules(
        use=settings.use,
        precisions=settings.precisions,
        tolerance=Tolerance(settings.tolerance, settings.tolerance),
        build_memory_bytes=settings.build_memory_mib << 20 or psutil.virtual_memory().total // 2,
        workspace_bytes=settings.workspace_mib << 20,
        gpu_memory_bytes=settings.gpu_memory_mib << 20,
        streams=settings.streams,
        cuda_graphs=settings.cuda_graphs,
        refit=settings.new_weights == "refit",
    )
    return Acceleration(Accelerator(state, rules), RuntimesFile(state / RUNTIMES_FILE), slots, tell=tell)


def _warn_if_open(state: Path) -> None:
    """Say it where others may look into a folder that was there before; a person may have other files in it."""
    mode = state.stat().st_mode & 0o777
    if mode & 0o077:
        _log.warning("%s: others on this machine may look into it (mode %o): chmod 700 %s", state, mode, state)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
