"""The parts of a fleet server that the console reads, on a real database, and the console's own application."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx
import msgspec
import sqlalchemy as sa
from fastapi import FastAPI

from edge_agent.contract.envelope import Envelope
from edge_agent.contract.errors import ShoalError
from edge_agent.contract.messages import Event, EventKind, Hardware, Reported, ReportedModel
from edge_agent.contract.repository import AssignedHardware
from edge_agent.contract.topics import Stream
from fleet_server import http_errors
from fleet_server.access.guard import SESSION_COOKIE, Guard
from fleet_server.access.roles import Role
from fleet_server.access.service import AccessService
from fleet_server.access.tables import device_secrets
from fleet_server.clock import now_ms
from fleet_server.console import run_routes
from fleet_server.console.routes import routes
from fleet_server.console.run_pages import RunPages
from fleet_server.console.service import ConsoleService
from fleet_server.database import Database, metadata
from fleet_server.devices.service import DeviceService
from fleet_server.models.service import ModelService
from fleet_server.monitoring.settings import DriftRule
from fleet_server.rollouts.service import RolloutService
from fleet_server.schedules.schedule_service import ScheduleService
from fleet_server.schedules.service import RunService, RunSettings
from fleet_server.updates.approvals import Approval
from fleet_server.updates.orders import Order
from tests.fakes.packages import make_package

MODEL = "digits"
_MINUTE = 60_000


class MovableClock:
    """The server's clock, which the past is written by."""

    def __init__(self) -> None:
        self.at_ms = now_ms()
        self.present_ms = self.at_ms

    def __call__(self) -> int:
        return self.at_ms

    def before(self, minutes: float) -> int:
        """Go to that long before the present."""
        self.at_ms = self.present_ms - round(minutes * _MINUTE)
        return self.at_ms


class NoDirector:
    """Signs nothing: the console never asks for it."""

    def assign_many(self, orders: Sequence[Order]) -> dict[str, ShoalError]:
        raise AssertionError(f"the console assigned {len(orders)} packages")

    def readdress(self, hardware: Mapping[str, AssignedHardware]) -> dict[str, ShoalError]:
        raise AssertionError(f"the console told the director of {len(hardware)} devices")

    def release_of(self, device: str, model: str) -> int:
        raise AssertionError(f"the console asked for the release of {model} on {device}")


class Harbour:
    """The server's parts that the console reads, on a database in ``folder``, and the application that serves it."""

    def __init__(self, folder: Path) -> None:
        self.waiting: Callable[[], Sequence[Approval]] = list  # no approver is asked for, unless a test says otherwise
        self.folder, self.clock = folder, MovableClock()
        self.db = Database(f"sqlite:///{folder / 'shoal.db'}")
        self.devices = DeviceService(self.db, lambda *_: None, "harbour", clock=self.clock)
        self.models = ModelService(self.db, clock=self.clock)
        self.rollouts = RolloutService(self.db, self.devices, self.models, NoDirector(), clock=self.clock)
        self.runs = RunService(
            self.db,
            lake=str(folder),
            lake_versions=lambda: (0, 0),
            champion=self.models.champion,
            settings=RunSettings(cool_down_s=0, lease_s=3_600),
            clock=self.clock,
        )
        self.access = AccessService(
            self.db,
            fleet="harbour",
            roots=lambda: ("{}", "{}"),
            on_enrolled=self.devices.enrolled,
            clock=self.clock,
        )
        metadata.create_all(self.db.engine)
        self.console = ConsoleService(
            self.db,
            fleet="harbour",
            devices=self.devices,
            models=self.models,
            rollouts=self.rollouts,
            runs=self.runs,
            approvals=lambda: self.waiting(),  # noqa: PLW0108  a test may put another there
            drift_rule=DriftRule(effect_floor=0.2),
            clock=self.clock,
        )
        self.app = FastAPI()
        http_errors.install(self.app)
        self.app.include_router(routes(self.console, Guard(self.access)))
        self.schedules = ScheduleService(self.db, clock=self.clock)
        pages = RunPages(self.runs, self.schedules, fleet="harbour", clock=self.clock)
        self.app.include_router(run_routes.routes(pages, Guard(self.access)))

    def session(self, role: Role = Role.VIEWER) -> str:
        """A browser's session token."""
        session = self.access.login(self.access.create_login(role))
        assert session is not None
        return session

    def client(self, session: str | None = None) -> httpx.AsyncClient:
        """A browser without a window, logged in where it has a session."""
        cookies = {SESSION_COOKIE: session} if session is not None else {}
        transport = httpx.ASGITransport(app=self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://shoal.test", cookies=cookies)

    def envelope(self, device: str, stream: Stream) -> Envelope:
        """One that handlers accept; its body travels beside it."""
        return Envelope(
            fleet="harbour",
            device=device,
            epoch="e",
            stream=stream,
            sequence=1,
            previous=0,
            sent_at_ms=self.clock(),
            body=msgspec.Raw(b"\x80"),
        )

    def release(self, version: str, *, seed: int, accuracy: float) -> str:
        """Publish a real package; gives its digest."""
        package = make_package(self.folder / f"package-{version}", version=version, seed=seed)
        self.models.register(package.manifest, package.digest, {"accuracy": accuracy})
        return package.digest

    def enrol(self, device: str) -> None:
        """A new device, not connected yet."""
        with self.db.write() as connection:
            self.devices.enrolled(connection, device, Hardware(architecture="aarch64", system="Linux"))
            values = {"device": device, "sha256": device, "enrolled_at_ms": self.clock()}
            connection.execute(sa.insert(device_secrets).values(values))

    def report(self, device: str, model: ReportedModel, name: str = MODEL) -> None:
        """The device says what it serves."""
        hardware = Hardware(architecture="aarch64", system="Linux")
        reported = Reported(
            agent_version="0.1.0",
            started_at_ms=self.clock(),
            desired_revision=1,
            hardware=hardware,
            models={name: model},
        )
        self.devices.on_reported(device, reported)

    def event(self, device: str, kind: EventKind, *, package: str = "", reason: str = "", step: str = "") -> None:
        """The device says what happened."""
        envelope = self.envelope(device, Stream.EVENTS)
        detail = {"step": step} if step else {}
        event = Event(
            kind=kind, at_ms=self.clock(), model=MODEL if package else "", package=package, reason=reason, detail=detail
        )
        with self.db.write() as connection:
            self.devices.on_event(connection, envelope, event)
