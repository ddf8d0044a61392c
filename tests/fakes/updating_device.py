"""The updating part of a device: real slots, real ONNX sessions, a real state folder; time is the test's."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.enrolment import Enrolment
from edge_agent.contract.messages import Desired, Event, EventKind, ReportedModel, UpdateStep
from edge_agent.runtime.shadow import Shadows
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
        with_shadows: bool = False,
        **settings: Any,
    ) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self.state, self.now_s = state, 1000.0
        self.slots = Slots()
        self.events: list[Event] = []
        settings |= {"utc_now": utc_now} if utc_now else {}
        if after_step:
            settings["after_step"] = after_step
        self.shadows = Shadows(_Nobody(), self.slots) if with_shadows else None
        self.installer = Installer(
            state, enrolment, self.slots, self.events.append, load, monotonic=lambda: self.now_s,
            shadows=self.shadows, **settings,
        )  # fmt: skip
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

    def rest(self, seconds: float) -> None:
        """So much time passes, as for sources that gave wrong bytes."""
        self.now_s += seconds

    def infer(self) -> Any:
        """What the model that serves answers to one gray image."""
        with self.slots.lease("digits") as loaded:
            return loaded.backend.infer({INPUT: np.full((1, PIXELS), 0.5, np.float32)})[OUTPUT]

    def ask(self, images: NDArray[np.float32], model: str = "digits", name: str = INPUT) -> None:
        """Ask as an application does, one row at a time: counted by the model, and seen by a shadow."""
        for row in images:
            inputs = {name: row[None]}
            with self.slots.lease(model) as loaded:
                try:
                    outputs = loaded.backend.infer(inputs)
                except Exception:  # noqa: BLE001 - whatever a model raises, as in serving
                    loaded.statistics.failed(1000)
                    continue
                loaded.statistics.answered(1, 1000, 1000, 1000)
                if self.shadows is not None:
                    self.shadows.observe(loaded, "r", inputs, outputs, latency_us=3.0, group="")

    def ask_until(self, done: Callable[[], bool], images: NDArray[np.float32], timeout_s: float = 60.0) -> None:
        """Ask on, and watch, until something has come about."""
        until = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < until, self.installer.reported()
            self.ask(images)
            time.sleep(0.02)
            self.installer.watch()

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
        if self.shadows is not None:
            self.shadows.close()
        self.slots.close()


class _Nobody:
    """Watches nothing."""

    def observe(self, *_about: Any, **_more: Any) -> bool:
        return False

    def observe_together(self, *_about: Any, **_more: Any) -> tuple[int, ...]:
        return ()

    def refused(self, *_about: Any) -> None: ...

    def failed(self, *_about: Any) -> None: ...

    def feedback(self, *_about: Any, **_more: Any) -> bool:
        return False
