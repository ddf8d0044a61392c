"""The reporter flushes at the fleet's pace and publishes the twin when it has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec
import pytest

from edge_agent.contract.errors import StorageFull
from edge_agent.contract.messages import Hardware, Reported, ReportedModel, ReportedRuntime, UpdateStep
from edge_agent.reporter import Reporter

RUNTIME = ReportedRuntime(name="onnxruntime-cpu", building="building a TensorRT fp16 engine", building_percent=42.0)
MODEL = ReportedModel(version="1", package="a" * 64, step=UpdateStep.COMMITTED, runtime=RUNTIME, reason="3 rows")
TWIN = Reported(
    agent_version="1", started_at_ms=1, desired_revision=0, hardware=Hardware(architecture="x", system="y"),
    models={"digits": MODEL},
)  # fmt: skip


class Ends:
    """What the reporter calls."""

    def __init__(self) -> None:
        self.twin = TWIN
        self.published: list[Reported] = []
        self.flushes = self.reliefs = 0
        self.disk_is_full = False
        self.faults = 0
        self.called = threading.Condition()

    def flush(self) -> None:
        with self.called:
            self.flushes += 1
            self.called.notify_all()
        if self.disk_is_full:
            raise StorageFull("no room")
        self._fault()

    def relieve(self) -> None:
        with self.called:
            self.reliefs += 1
            self.called.notify_all()
        if self.disk_is_full:
            raise StorageFull("no room")

    def _fault(self) -> None:
        if self.faults:
            self.faults -= 1
            raise RuntimeError("a bug")

    def publish(self, twin: Reported) -> None:
        self._fault()
        with self.called:
            self.published.append(twin)
            self.called.notify_all()

    def wait(self, true: Callable[[], bool]) -> None:
        with self.called:
            assert self.called.wait_for(true, timeout=30)


def reporter(ends: Ends, interval_s: float = 0.01) -> Reporter:
    return Reporter(
        flush=ends.flush,
        relieve=ends.relieve,
        twin=lambda: ends.twin,
        publish=ends.publish,
        interval_s=interval_s,
    )


def test_a_changed_step_is_published_and_an_unchanged_twin_is_not_repeated() -> None:
    ends = Ends()
    one = reporter(ends)
    one.start()
    ends.wait(lambda: len(ends.published) == 1 and ends.flushes > 2)
    ends.twin = msgspec.structs.replace(
        TWIN, models={"digits": msgspec.structs.replace(MODEL, step=UpdateStep.DOWNLOADING)}
    )
    ends.wait(lambda: len(ends.published) == 2)
    one.stop()
    assert [twin.models["digits"].step.value for twin in ends.published] == ["committed", "downloading"]


def test_a_full_disk_does_not_end_reporting() -> None:
    ends = Ends()
    ends.disk_is_full = True
    one = reporter(ends)
    one.start()
    ends.wait(lambda: ends.flushes >= 2)
    ends.disk_is_full = False
    before = ends.flushes
    ends.wait(lambda: ends.flushes > before)
    one.stop()
    assert ends.flushes > before + 1  # the last one when it stops, as always


def test_what_should_not_wait_is_handed_over_between_reports_unless_the_disk_has_just_refused() -> None:
    ends = Ends()
    one = reporter(ends, interval_s=3600.0)
    one.start()
    ends.wait(lambda: ends.reliefs == 2)
    ends.disk_is_full = True
    ends.wait(lambda: ends.reliefs == 3)
    published = len(ends.published)
    for look in (1, 2):
        ends.twin = msgspec.structs.replace(TWIN, desired_revision=look)
        ends.wait(lambda look=look: len(ends.published) == published + look)  # type: ignore[misc]
    assert ends.reliefs == 3
    one.stop()


def test_an_unexpected_error_does_not_end_reporting_and_is_logged_with_its_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ends = Ends()
    ends.faults = 3
    one = reporter(ends)
    one.start()
    ends.wait(lambda: len(ends.published) == 1)
    before = ends.flushes
    ends.wait(lambda: ends.flushes > before)
    one.stop()
    assert "RuntimeError: a bug" in caplog.text


def test_another_pace_holds_at_once_even_after_one_that_never_ends() -> None:
    ends = Ends()
    one = reporter(ends, interval_s=1e15)
    one.start()
    ends.wait(lambda: len(ends.published) == 1)
    assert ends.flushes == 0
    one.set_interval(0.01)
    ends.wait(lambda: ends.flushes == 1)
    one.stop()


def test_stopping_flushes_what_was_counted_last() -> None:
    ends = Ends()
    one = reporter(ends, interval_s=3600.0)
    one.start()
    ends.wait(lambda: len(ends.published) == 1)
    assert ends.flushes == 0
    one.stop()
    assert ends.flushes == 1


@pytest.mark.parametrize(
    "changed",
    [
        msgspec.structs.replace(MODEL, requests=5),
        msgspec.structs.replace(MODEL, reason="4 rows"),
        msgspec.structs.replace(MODEL, runtime=msgspec.structs.replace(RUNTIME, building_percent=43.0)),
    ],
)
def test_counters_alone_are_held_back_for_a_moment(changed: ReportedModel) -> None:
    ends = Ends()
    one = reporter(ends, interval_s=3600.0)
    one.start()
    ends.wait(lambda: len(ends.published) == 1)
    begin = time.monotonic()
    ends.twin = msgspec.structs.replace(TWIN, models={"digits": changed})
    ends.wait(lambda: len(ends.published) == 2)
    one.stop()
    assert time.monotonic() - begin > 0.5  # a step would have gone at the next look, half a second after the first
    assert ends.published[-1].models["digits"] == changed
