"""Twins: every change is written down first, published after, and again where that failed."""

from __future__ import annotations

import threading

import msgspec
import pytest

from edge_agent.contract.envelope import Envelope, decode
from edge_agent.contract.messages import Desired, DesiredModel, Event, EventKind
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.topics import Stream
from fleet_server.devices.service import EVENTS_KEPT_MS, DeviceService
from fleet_server.errors import NotFound
from tests.fleet_server.fleet import HARDWARE, Fleet

WANTED = DesiredModel(version="1", package="a" * 64, release=1)
POLICY = SamplingPolicy(samples_per_minute=5.0, labels_per_minute=2.0)


def record(fleet: Fleet, device: str, **changes: object) -> None:
    fields = {"kind": EventKind.ROLLED_BACK, "at_ms": 5, "model": "digits", "reason": "worse", "detail": {"n": 1}}
    event = Event(**{**fields, **changes})  # type: ignore[arg-type]
    envelope = Envelope(
        fleet="test",
        device=device,
        epoch="e",
        stream=Stream.EVENTS,
        sequence=1,
        previous=0,
        sent_at_ms=5,
        body=msgspec.Raw(b"\xc0"),
    )
    with fleet.db.write() as connection:
        fleet.devices.on_event(connection, envelope, event)


def test_each_change_is_a_new_revision_published_and_retained(fleet: Fleet) -> None:
    device = fleet.join("d0")
    first = device.desired.revision
    fleet.devices.desire_model("d0", "digits", WANTED)
    assert device.desired.models == {"digits": WANTED}
    assert device.desired.revision == first + 1
    fleet.devices.desire_model("d0", "digits", WANTED)
    assert device.desired.revision == first + 1  # nothing changed


def test_what_the_broker_did_not_take_is_published_by_the_next_tick(fleet: Fleet) -> None:
    device = fleet.join("d0")
    fleet.broker_is_away = True
    fleet.devices.desire_model("d0", "digits", WANTED)
    fleet.devices.tick(fleet.now_ms)
    assert device.desired.models == {}
    fleet.broker_is_away = False
    fleet.devices.tick(fleet.now_ms)
    assert device.desired.models == {"digits": WANTED}


def test_a_broker_that_forgot_its_retained_messages_gets_them_again(fleet: Fleet) -> None:
    fleet.join("d0")
    fleet.devices.tick(fleet.now_ms)
    fleet.published.clear()
    fleet.devices.tick(fleet.now_ms)
    assert fleet.published == {}
    fleet.devices.broker_connected()
    fleet.devices.tick(fleet.now_ms)
    assert list(fleet.published) == ["d0"]


def test_a_restarted_server_publishes_all_desired_states(fleet: Fleet) -> None:
    fleet.join("d0")
    published: list[str] = []
    again = DeviceService(fleet.db, lambda topic, _payload, _retain: published.append(topic), "test")
    again.tick(0)
    assert published == ["fleet/v1/test/d0/twin/desired"]


def test_a_device_that_missed_a_change_is_told_when_it_connects(fleet: Fleet) -> None:
    device = fleet.join("d0")
    fleet.devices.desire_model("d0", "digits", WANTED)
    fleet.published.clear()
    device.connect()
    assert device.desired.models == {"digits": WANTED}
    device.report()
    fleet.published.clear()
    device.connect()
    assert fleet.published == {}  # it has acted on it


def test_a_sampling_policy_reaches_every_device_of_the_model_and_those_that_come_later(fleet: Fleet) -> None:
    first, other = fleet.join("d0"), fleet.join("d1")
    fleet.devices.desire_model("d0", "digits", WANTED)
    before = other.desired.revision
    fleet.devices.desire_sampling("digits", POLICY)
    assert first.desired.sampling == {"digits": POLICY}
    assert (other.desired.sampling, other.desired.revision) == ({}, before)
    fleet.devices.desire_model("d1", "digits", WANTED)
    assert other.desired.sampling == {"digits": POLICY}


def test_the_report_interval_reaches_everybody(fleet: Fleet) -> None:
    device = fleet.join("d0")
    fleet.devices.desire_report_interval(2.5)
    assert device.desired.report_interval_s == 2.5
    assert fleet.join("d1").desired.report_interval_s == 2.5


def test_the_report_interval_holds_for_those_that_enrol_after_a_restart(fleet: Fleet) -> None:
    fleet.devices.desire_report_interval(2.5)
    restarted = DeviceService(fleet.db, lambda *_: None, "test", report_interval_s=60.0, clock=fleet.clock)
    with fleet.db.write() as connection:
        restarted.enrolled(connection, "d0", HARDWARE)
    assert restarted.get("d0").report_interval_s == 2.5


def test_presence_follows_status_and_the_last_will(fleet: Fleet) -> None:
    device = fleet.join("d0")
    assert fleet.devices.get("d0").online
    fleet.now_ms += 5_000
    device.disconnect()
    gone = fleet.devices.get("d0")
    assert (gone.online, gone.online_changed_at_ms, gone.last_seen_ms) == (False, 1_005_000, 1_000_000)
    device.connect()
    fleet.devices.forget_connections()
    assert not fleet.devices.get("d0").online


def test_who_was_seen_is_written_down_by_the_tick(fleet: Fleet) -> None:
    fleet.join("d0")
    fleet.now_ms += 9_000
    fleet.devices.seen("d0")
    fleet.devices.seen("stranger")
    fleet.devices.tick(fleet.now_ms)
    assert fleet.devices.get("d0").last_seen_ms == 1_009_000


def test_strangers_and_revoked_devices_are_ignored(fleet: Fleet) -> None:
    device = fleet.join("d0")
    fleet.access.revoke_device("d0")
    device.disconnect()
    device.models = {}
    device.report()
    record_before = fleet.devices.get("d0")
    assert record_before.online  # its last word as a member
    assert record_before.agent_version is None
    with pytest.raises(NotFound, match="no device 'd9'"):
        fleet.devices.get("d9")


def test_a_device_that_reports_fewer_models_loses_the_others(fleet: Fleet) -> None:
    device = fleet.join("d0")
    fleet.devices.desire_model("d0", "digits", WANTED)
    device.update()
    assert list(fleet.devices.get("d0").reported) == ["digits"]
    device.models = {}
    device.report()
    assert fleet.devices.get("d0").reported == {}


def test_events_come_newest_first_page_by_page_and_grow_old(fleet: Fleet) -> None:
    fleet.join("d0")
    for number in range(3):
        record(fleet, "d0", reason=f"reason {number}")
    record(fleet, "d1")
    newest = fleet.devices.events("d0", limit=2)
    assert [event.reason for event in newest] == ["reason 2", "reason 1"]
    assert newest[0].detail == {"n": 1}
    older = fleet.devices.events("d0", before=newest[-1].id)
    assert [event.reason for event in older] == ["reason 0"]
    assert len(fleet.devices.events()) == 4
    fleet.devices.prune(fleet.now_ms + EVENTS_KEPT_MS + 1)
    assert fleet.devices.events() == []


def test_of_two_changes_at_once_the_newer_is_retained(fleet: Fleet) -> None:
    device = fleet.join("d0")
    older_is_sent, newer_is_asked_for = threading.Event(), threading.Event()
    sent: list[int] = []

    def slow(topic: str, payload: bytes, _retain: bool) -> None:
        if not older_is_sent.is_set():
            older_is_sent.set()
            newer_is_asked_for.wait(0.3)
        sent.append(decode(payload, Desired).revision)
        assert topic.endswith("/d0/twin/desired")

    devices = DeviceService(fleet.db, slow, "test")
    older = threading.Thread(target=devices.publish_desired, args=("d0",))
    older.start()
    assert older_is_sent.wait(30)
    newer = threading.Thread(target=devices.desire_model, args=("d0", "digits", WANTED))
    newer.start()
    newer.join(0.1)
    newer_is_asked_for.set()
    older.join(30)
    newer.join(30)
    assert sent == [device.desired.revision, device.desired.revision + 1]
