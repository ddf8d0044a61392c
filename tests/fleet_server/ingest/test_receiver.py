"""What comes in a batch: one device's bad message costs no other device anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from edge_agent.contract.enrolment import EnrolmentRequest
from edge_agent.contract.envelope import encode
from edge_agent.contract.messages import Reported, Status
from edge_agent.contract.topics import DeviceTopics, Stream
from fleet_server.access.service import AccessService
from fleet_server.database import Database, metadata
from fleet_server.devices.service import DeviceService
from fleet_server.ingest.receiver import Receiver
from fleet_server.ingest.service import IngestService
from fleet_server.mqtt import Received
from tests.fakes.postgres import postgres
from tests.fleet_server.fleet import BROKER, HARDWARE, Fleet

ALL = dict.fromkeys(Stream, lambda *_: None)


@pytest.fixture(scope="module")
def postgres_url(program: Callable[[str], object]) -> Iterator[str]:
    with postgres(program("initdb"), program("postgres")) as url:  # type: ignore[arg-type]
        yield url


def reported(device: str, agent_version: str) -> Received:
    body = Reported(agent_version=agent_version, started_at_ms=1, desired_revision=1, hardware=HARDWARE, api="")
    return Received(DeviceTopics("test", device).reported, encode(body))


def test_a_report_that_the_database_cannot_hold_is_set_aside_and_the_others_are_taken(postgres_url: str) -> None:
    db = Database(postgres_url)
    metadata.create_all(db.engine)
    devices = DeviceService(db, lambda *_: None, "test")
    access = AccessService(db, fleet="test", roots=lambda: ("", ""), on_enrolled=devices.enrolled)
    for name in ("bad", "good"):
        request = EnrolmentRequest(claim=access.create_claim(name), device=name, hardware=HARDWARE)
        access.enrol(request, server="http://server", broker=BROKER)
    ingest = IngestService(db, ALL)
    receiver = Receiver(
        "test", ingest, publish=lambda *_: None, on_reported=devices.on_reported, on_status=devices.on_status
    )
    receiver.receive([reported("bad", "1.0\0"), reported("good", "1.0")])  # NUL is no character of PostgreSQL's text
    assert devices.get("good").agent_version == "1.0"
    assert devices.get("bad").agent_version is None
    assert ingest.set_aside_count() == 1
    db.close()


def test_a_twin_that_is_no_message_is_set_aside_with_its_reason(fleet: Fleet) -> None:
    fleet.join("d0")
    ingest = IngestService(fleet.db, ALL)
    receiver = Receiver(
        "test",
        ingest,
        publish=lambda *_: None,
        on_reported=fleet.devices.on_reported,
        on_status=fleet.devices.on_status,
    )
    topics = DeviceTopics("test", "d0")
    offline = encode(Status(online=False, at_ms=1))
    receiver.receive([Received(topics.reported, b"scribble"), Received(topics.status, offline)])
    assert not fleet.devices.get("d0").online
    assert ingest.set_aside_count() == 1
