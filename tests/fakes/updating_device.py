"""The updating part of a device: real slots, real ONNX sessions, a real state folder; time is the test's."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.contract.enrolment import Enrolment
from edge_agent.contract.messages import Desired, Event, EventKind, ReportedModel, UpdateStep
from edge_agent.runtime.slots import Slots, load
from edge_agent.update.installer import Installer
from tests.fakes.packages import INPUT, OUTPUT, PIXELS


class UpdatingDevice:
    """An installer that was started."""

    def __init__(
        self,
        state: Path,
        enrolment: Enrolment | None,
        *,
        utc_now: Callable[[], dt.datetime] | None = None,
        after_step: Callable[[str, UpdateStep], None] | None = None,
    ) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self.state, self.now_s = state, 1000.0
        self.slots = Slots()
        self.events: list[Event] = []
        settings: dict[str, Any] = {"utc_now": utc_now} if utc_now else {}
        if after_step:
            settings["after_step"] = after_step
        self.installer = Installer(
            state, enrolment, self.slots, self.events.append, load, monotonic=lambda: self.now_s, **settings
        )
        self.installer.start()

    def apply(self, desired: Desired) -> bool:
        return self.installer.apply(desired)

    def pass_probation(self) -> None:
        self.now_s += 3600
        self.installer.watch()

    def update(self, desired: Desired) -> None:
        """A whole update that goes well."""
        self.installer.apply(desired)
        self.pass_probation()
        assert self.installer.apply(desired), self.installer.reported()

    def infer(self) -> Any:
        """What the model that serves answers to one gray image."""
        with self.slots.lease("digits") as loaded:
            return loaded.backend.infer({INPUT: np.full((1, PIXELS), 0.5, np.float32)})[OUTPUT]

    @property
    def version(self) -> str:
        return self.slots.get("digits").version

    def reported(self) -> ReportedModel:
        return self.installer.reported()["digits"]

    def told(self, kind: EventKind) -> list[Event]:
        return [event for event in self.events if event.kind is kind]

    def packages(self) -> set[str]:
        """What lies in the folder of packages."""
        folder = self.state / "packages"
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    def close(self) -> None:
        self.installer.close()
        self.slots.close()
