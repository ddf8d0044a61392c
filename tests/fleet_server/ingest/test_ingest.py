from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.contract.envelope import Envelope, encode
from edge_agent.contract.errors import ConfigurationError, MessageError
from edge_agent.contract.messages import Ack, Event, EventKind
from edge_agent.contract.topics import DeviceTopics, Stream
from fleet_server.database import Database, metadata
from fleet_server.ingest.quarantine import KEPT_PER_DEVICE
from fleet_server.ingest.service import Handler, IngestService, chain
from fleet_server.ingest.tables import set_aside
from fleet_server.ingest.watermarks import BEYOND_ALL, Verdict, judge

TOPICS = DeviceTopics("reef", "d1")
UP = TOPICS.up(Stream.EVENTS)

# Of its own metadata: the server's holds the server's tables, and other tests compare them.
effects = sa.Table("test_effects", sa.MetaData(), sa.Column("text", sa.Text, nullable=False))


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'server.db'}")
    metadata.create_all(database.engine)
    effects.metadata.create_all(database.engine)
    yield database
    database.close()


def remember(connection: sa.Connection, _envelope: Envelope, event: Event) -> None:
    connection.execute(sa.insert(effects).values(text=event.reason))
    if event.reason == "poison":
        raise MessageError("this must not be")
    if event.reason == "fault":
        raise KeyError("a fault in a handler")


def service(db: Database, handler: Handler = remember, **options: Any) -> IngestService:
    return IngestService(db, dict.fromkeys(Stream, handler), **options)


def message(sequence: int, previous: int | None = None, text: str | None = None, **other: Any) -> bytes:
    event = Event(kind=EventKind.AGENT_STARTED, at_ms=1, reason=str(sequence) if text is None else text)
    fields = {
        "fleet": "reef",
        "device": "d1",
        "epoch": "e1",
        "stream": Stream.EVENTS,
        "sequence": sequence,
        "previous": sequence - 1 if previous is None else previous,
        "sent_at_ms": 1,
        "body": msgspec.Raw(encode(event)),
    }
    return encode(Envelope(**{**fields, **other}))


def happened(db: Database) -> list[str]:
    with db.read() as connection:
        return list(connection.execute(sa.select(effects.c.text)).scalars())


def aside(db: Database) -> list[tuple[str, str, int]]:
    with db.read() as connection:
        rows = connection.execute(sa.select(set_aside.c.device, set_aside.c.reason, set_aside.c.times))
        return [(row.device, row.reason, row.times) for row in rows]


def mark(ack: Ack | None) -> int:
    assert ack is not None
    return ack.watermarks["events"]


def test_a_message_has_effect_once_however_often_it_comes(db: Database) -> None:
    ingest = service(db)
    assert [mark(ingest.take(UP, message(n))) for n in (1, 1, 2, 1, 2, 3)] == [1, 1, 2, 2, 2, 3]
    assert happened(db) == ["1", "2", "3"]
    assert ingest.counts == {"next": 3, "repeated": 3}


def test_a_message_after_a_gap_is_asked_for_again(db: Database) -> None:
    ingest = service(db)
    assert [mark(ingest.take(UP, message(n))) for n in (1, 3, 4, 2, 3)] == [1, 1, 1, 2, 3]
    assert happened(db) == ["1", "2", "3"]
    assert ingest.progress()[0].dropped == 0


def test_what_the_device_dropped_is_counted_and_does_not_stop_the_stream(db: Database) -> None:
    ingest = service(db)
    assert mark(ingest.take(UP, message(4, previous=0))) == 4  # a new outbox that lost its first ones
    assert mark(ingest.take(UP, message(9, previous=4))) == 9
    assert ingest.progress()[0].dropped == 3 + 4


def test_a_new_epoch_begins_anew(db: Database) -> None:
    ingest = service(db)
    ingest.take(UP, message(5, previous=0))
    ack = ingest.take(UP, message(1, epoch="e2"))
    assert ack is not None
    assert (ack.epoch, ack.watermarks) == ("e2", {"events": 1})
    assert happened(db) == ["5", "1"]


def test_streams_and_devices_do_not_disturb_each_other(db: Database) -> None:
    ingest = service(db, handler=lambda *_: None)
    other = DeviceTopics("reef", "d2").up(Stream.EVENTS)
    batch = [(UP, message(1)), (other, message(1, device="d2")), (UP, message(2)), (UP, message(9))]
    acks = {topics.device: ack.watermarks for topics, ack in ingest.take_all(batch)}
    assert acks == {"d1": {"events": 2}, "d2": {"events": 1}}


def test_a_batch_whose_commit_fails_has_no_effect_at_all(db: Database) -> None:
    def locked(connection: sa.Connection, envelope: Envelope, event: Event) -> None:
        remember(connection, envelope, event)
        if event.reason == "2" and broken:
            raise sa.exc.OperationalError("INSERT", {}, Exception("database is locked"))

    broken = [True]
    ingest = service(db, handler=locked)
    batch = [(UP, message(1)), (UP, message(2))]
    with pytest.raises(sa.exc.OperationalError):
        ingest.take_all(batch)
    assert (happened(db), ingest.progress(), ingest.counts) == ([], [], {})
    broken.clear()
    ingest.take_all(batch)
    assert happened(db) == ["1", "2"]


@pytest.mark.parametrize("poison", ["poison", "fault"])
def test_a_poisoned_message_is_set_aside_without_effect_and_its_stream_goes_on(db: Database, poison: str) -> None:
    ingest = service(db)
    assert [mark(ingest.take(UP, m)) for m in (message(1), message(2, text=poison), message(3))] == [1, 2, 3]
    assert happened(db) == ["1", "3"]
    (device, reason, times) = aside(db)[0]
    assert (device, times) == ("d1", 1)
    assert "this must not be" in reason or "KeyError" in reason


def test_a_body_of_a_later_major_version_is_set_aside(db: Database) -> None:
    ingest = service(db)
    newer = msgspec.Raw(msgspec.msgpack.encode({"schema": "9.0", "kind": "agent-started", "at_ms": 1}))
    assert mark(ingest.take(UP, message(1, body=newer))) == 1
    assert "UnknownSchemaVersion" in aside(db)[0][1]


@pytest.mark.parametrize(
    ("topic", "payload", "why"),
    [
        (UP, b"\xc1 not msgpack", "Envelope"),
        (UP, b"", "Envelope"),
        (UP, message(1, device="d2"), "its topic another"),
        (UP, message(1, fleet="atoll"), "its topic another"),
        (UP, message(1, stream=Stream.METRICS), "its topic another"),
        (UP, message(1).replace(b"previous\x00", b"previous\x01"), "previous"),
        (UP, message(1 << 62), "no sequence"),
        (UP, message(1, epoch=""), "epoch"),
        (UP, message(1, epoch="e\0"), "epoch"),
        ("fleet/v2/reef/d1/up/events", message(1), "is not fleet/v1"),
    ],
)
def test_what_is_no_message_is_set_aside_and_not_acknowledged(
    db: Database, topic: str, payload: bytes, why: str
) -> None:
    ingest = service(db)
    assert ingest.take(topic, payload) is None
    assert why in aside(db)[0][1]
    assert mark(ingest.take(UP, message(1))) == 1


def test_the_same_garbage_is_kept_once_and_each_device_has_its_limit(db: Database) -> None:
    ingest = service(db)
    ingest.take_all([(UP, b"garbage")] * 5)
    assert [times for _, _, times in aside(db)] == [5]
    ingest.take_all([(UP, b"garbage %d" % n) for n in range(KEPT_PER_DEVICE + 50)])
    ingest.take(DeviceTopics("reef", "d2").up(Stream.EVENTS), b"other")
    assert ingest.set_aside_count() == KEPT_PER_DEVICE + 1
    assert ingest.counts["set-aside"] == 5 + KEPT_PER_DEVICE + 50 + 1


def test_a_revoked_device_is_not_heard(db: Database) -> None:
    ingest = service(db, accepts=lambda device: device != "d1")
    assert ingest.take(UP, message(1)) is None
    assert (happened(db), aside(db), ingest.counts) == ([], [], {"refused": 1})


def test_a_stream_without_a_handler_is_refused_at_the_start(db: Database) -> None:
    with pytest.raises(ConfigurationError, match="labels, metrics"):
        IngestService(db, {stream: remember for stream in Stream if stream not in (Stream.LABELS, Stream.METRICS)})


def test_numbers_given_a_second_time_close_the_epoch_instead_of_being_lost_as_repeated(db: Database) -> None:
    ingest = service(db)
    ingest.take_all([(UP, message(n)) for n in (1, 2, 3)])
    assert mark(ingest.take(UP, message(3, previous=0))) == 3  # sent again, with another `previous`: no fork
    for n in (2, 3, 4):
        assert mark(ingest.take(UP, message(n, text=f"other {n}"))) == BEYOND_ALL
    assert happened(db) == ["1", "2", "3"]
    assert ingest.positions()[0][1].watermarks["events"] == BEYOND_ALL
    assert mark(ingest.take(UP, message(2, previous=0, epoch="e2", text="other 2"))) == 2


def test_several_handlers_share_one_fate(db: Database) -> None:
    def refuse(*_: Any) -> None:
        raise MessageError("no")

    ingest = service(db, handler=chain(remember, refuse))
    assert mark(ingest.take(UP, message(1))) == 1
    assert happened(db) == []


def test_a_restarted_server_knows_how_far_each_device_has_come(db: Database) -> None:
    ticks = iter(range(1, 100))
    ingest = service(db, handler=lambda *_: None, clock=lambda: next(ticks))
    ingest.take(UP, message(7, previous=0))
    ingest.take(UP, message(2, previous=0, epoch="e2"))
    ingest.take(TOPICS.up(Stream.METRICS), message(3, previous=0, epoch="e2", stream=Stream.METRICS, body=_metrics()))
    assert service(db).positions() == [("d1", Ack(epoch="e2", watermarks={"events": 2, "metrics": 3}))]


def _metrics() -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode({"from_ms": 1, "until_ms": 2, "models": []}))


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 4)), max_size=60))
def test_any_order_of_any_repetition_has_each_effect_at_most_once_and_in_order(line: list[tuple[int, int]]) -> None:
    watermark, taken = 0, []
    for sequence, before in line:
        if judge(max(0, sequence - before), sequence, watermark) is Verdict.NEXT:
            taken.append(sequence)
            watermark = sequence
    assert taken == sorted(set(taken))


@given(st.permutations(range(1, 7)))
@settings(max_examples=30)
def test_no_message_that_still_exists_on_the_device_is_ever_skipped(order: list[int]) -> None:
    watermark, taken = 0, []
    for sequence in order:
        if judge(sequence - 1, sequence, watermark) is Verdict.NEXT:
            taken.append(sequence)
            watermark = sequence
    assert taken == list(range(1, len(taken) + 1))
