from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.contract.envelope import MAX_PAYLOAD_BYTES, Envelope, decode
from edge_agent.contract.errors import MessageError, StorageFull, StorageNotWritable
from edge_agent.contract.messages import Ack, Event, EventKind, SampleBatch
from edge_agent.contract.topics import Stream
from edge_agent.outbox.outbox import MAX_BODY_BYTES, Outbox
from tests.fakes.small_disk import run_on_full_disk

Open = Callable[..., Outbox]


@pytest.fixture
def open_outbox(tmp_path: Path) -> Iterator[Open]:
    opened: list[Outbox] = []

    def make(limit_bytes: int = 1 << 20, **options: float) -> Outbox:
        outbox = Outbox(tmp_path / "outbox.db", fleet="reef", device="d1", limit_bytes=limit_bytes, **options)  # type: ignore[arg-type]
        opened.append(outbox)
        return outbox

    yield make
    for outbox in opened:
        outbox.close()


def event(text: str) -> Event:
    return Event(kind=EventKind.AGENT_STARTED, at_ms=1, reason=text)


def batch(size_bytes: int = 0) -> SampleBatch:
    return SampleBatch(model="m" * size_bytes, samples=())


def envelopes(outbox: Outbox, stream: Stream, after: int = 0) -> list[Envelope]:
    return [decode(p.payload, Envelope) for p in outbox.pending(stream, after=after, limit=1000)]


def links(outbox: Outbox, stream: Stream, after: int = 0) -> list[tuple[int, int]]:
    return [(e.previous, e.sequence) for e in envelopes(outbox, stream, after)]


def test_messages_come_out_in_order_each_naming_the_one_before(open_outbox: Open) -> None:
    outbox = open_outbox()
    assert [outbox.append(Stream.EVENTS, event(str(n))) for n in range(3)] == [1, 2, 3]
    assert outbox.append(Stream.METRICS, batch()) == 1
    assert links(outbox, Stream.EVENTS) == [(0, 1), (1, 2), (2, 3)]
    assert links(outbox, Stream.EVENTS, after=1) == [(1, 2), (2, 3)]
    first = envelopes(outbox, Stream.EVENTS)[0]
    assert (first.fleet, first.device, first.epoch) == ("reef", "d1", outbox.epoch)
    assert decode(bytes(first.body), Event).reason == "0"


def test_acknowledged_messages_are_forgotten_and_their_numbers_never_given_again(open_outbox: Open) -> None:
    outbox = open_outbox()
    for n in range(3):
        outbox.append(Stream.EVENTS, event(str(n)))
    outbox.acknowledge(Ack(epoch=outbox.epoch, watermarks={"events": 2, "a-later-stream": 9}))
    assert links(outbox, Stream.EVENTS) == [(0, 3)]  # nothing older is here, so it follows whatever the server has
    outbox.acknowledge(Ack(epoch=outbox.epoch, watermarks={"events": 3}))
    assert outbox.size() == (0, 0)
    epoch = outbox.epoch
    outbox.close()
    again = open_outbox()
    assert (again.epoch, again.append(Stream.EVENTS, event("next"))) == (epoch, 4)


def test_an_acknowledgement_of_another_epoch_is_ignored(open_outbox: Open) -> None:
    outbox = open_outbox()
    outbox.append(Stream.EVENTS, event("kept"))
    outbox.acknowledge(Ack(epoch="another", watermarks={"events": 1}))
    assert outbox.size()[0] == 1


def test_a_restored_copy_begins_a_new_epoch_and_keeps_what_waits(open_outbox: Open, tmp_path: Path) -> None:
    outbox = open_outbox()
    outbox.append(Stream.SAMPLES, batch())
    outbox.close()
    copy = (tmp_path / "outbox.db").read_bytes()
    outbox = open_outbox()
    outbox.append(Stream.SAMPLES, batch())
    old_epoch = outbox.epoch
    outbox.close()
    (tmp_path / "outbox.db").write_bytes(copy)

    restored = open_outbox()
    restored.acknowledge(Ack(epoch=old_epoch, watermarks={"samples": 2}))
    assert restored.epoch != old_epoch
    assert links(restored, Stream.SAMPLES) == [(0, 1)]
    assert decode(bytes(envelopes(restored, Stream.EVENTS)[0].body), Event).kind is EventKind.STORAGE


def test_at_the_limit_the_least_important_goes_first_oldest_first_and_is_reported(open_outbox: Open) -> None:
    outbox = open_outbox(limit_bytes=10_000)
    for _ in range(4):
        outbox.append(Stream.SAMPLES, batch(2000))
    outbox.append(Stream.LABELS, batch(3000))
    assert [s for _, s in links(outbox, Stream.SAMPLES)][-1] == 4
    assert links(outbox, Stream.SAMPLES)[0][0] == 0  # says: what was before is gone, go on
    dropped = decode(bytes(envelopes(outbox, Stream.EVENTS)[0].body), Event)
    assert (dropped.kind, dropped.detail) == (EventKind.OUTBOX_DROPPED, {"samples": 1})
    assert links(outbox, Stream.LABELS) == [(0, 1)]
    assert outbox.size()[1] <= 10_000


def test_a_message_less_important_than_all_that_waits_is_dropped_itself(open_outbox: Open) -> None:
    outbox = open_outbox(limit_bytes=5000, report_interval_s=0.0)
    outbox.append(Stream.LABELS, batch(4000))
    assert outbox.append(Stream.SAMPLES, batch(4000)) == 1
    assert links(outbox, Stream.SAMPLES) == []
    assert links(outbox, Stream.LABELS) == [(0, 1)]
    assert outbox.append(Stream.SAMPLES, batch(10)) == 2
    assert links(outbox, Stream.SAMPLES) == [(0, 2)]


def test_drops_are_reported_together_not_one_by_one(open_outbox: Open) -> None:
    outbox = open_outbox(limit_bytes=5000, report_interval_s=3600.0)
    for _ in range(50):
        outbox.append(Stream.SAMPLES, batch(1000))
    assert len(envelopes(outbox, Stream.EVENTS)) == 1
    outbox.close()
    again = open_outbox(limit_bytes=5000)
    again.append(Stream.SAMPLES, batch(10))
    reports = [decode(bytes(e.body), Event).detail["samples"] for e in envelopes(again, Stream.EVENTS)]
    kept = len(envelopes(again, Stream.SAMPLES))
    # The first event made room for itself before the rest was counted; nothing is counted twice or forgotten.
    assert sum(reports) + kept in (50, 51)


def test_a_message_too_large_to_travel_is_refused(open_outbox: Open) -> None:
    outbox = open_outbox()
    with pytest.raises(MessageError, match="split it"):
        outbox.append(Stream.SAMPLES, batch(MAX_PAYLOAD_BYTES))
    outbox.append(Stream.SAMPLES, batch(MAX_BODY_BYTES - 100))
    assert len(outbox.pending(Stream.SAMPLES, after=0, limit=1)[0].payload) <= MAX_PAYLOAD_BYTES


def test_a_full_disk_says_so_keeps_what_was_stored_and_reports_what_was_then_given_up(open_outbox: Open) -> None:
    outbox = open_outbox(report_interval_s=0.0)
    outbox.append(Stream.EVENTS, event("stored"))
    (pages,) = outbox._database.execute("PRAGMA page_count").fetchone()
    outbox._database.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StorageFull, match="no space left"):
        outbox.append(Stream.SAMPLES, batch(60_000))
    assert links(outbox, Stream.EVENTS) == [(0, 1)]
    outbox._database.execute("PRAGMA max_page_count=100000")
    outbox.append(Stream.SAMPLES, batch(60_000))
    assert links(outbox, Stream.EVENTS) == [(0, 1)], "what comes again was not lost"
    outbox.count_lost(Stream.SAMPLES)
    outbox.append(Stream.SAMPLES, batch(10))
    last = decode(bytes(envelopes(outbox, Stream.EVENTS)[-1].body), Event)
    assert (last.kind, last.detail) == (EventKind.OUTBOX_DROPPED, {"samples": 1})


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "sealed").mkdir(mode=0o500)
    with pytest.raises(StorageNotWritable, match=r"sealed/outbox\.db: not writable"):
        Outbox(tmp_path / "sealed" / "outbox.db", fleet="reef", device="d1")


def test_a_read_only_database_is_named(open_outbox: Open, tmp_path: Path) -> None:
    outbox = open_outbox()
    outbox._database.execute("PRAGMA query_only=ON")
    with pytest.raises(StorageNotWritable, match=r"outbox\.db: not writable"):
        outbox.append(Stream.EVENTS, event("lost"))


def test_a_damaged_file_is_set_aside_and_reported(open_outbox: Open, tmp_path: Path) -> None:
    (tmp_path / "outbox.db").write_bytes(b"not a database" * 100)
    outbox = open_outbox()
    first = decode(bytes(envelopes(outbox, Stream.EVENTS)[0].body), Event)
    assert first.kind is EventKind.STORAGE
    aside = next(tmp_path.glob("outbox.db.damaged-*"))
    assert aside.name in first.reason
    assert aside.read_bytes().startswith(b"not a database")


def test_a_file_with_a_spoilt_page_is_set_aside_too_and_only_the_newest_such_is_kept(
    open_outbox: Open, tmp_path: Path
) -> None:
    for _ in range(2):
        outbox = open_outbox()
        for _ in range(200):
            outbox.append(Stream.SAMPLES, batch(1000))
        outbox.close()
        with (tmp_path / "outbox.db").open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 4096 * 20)
    outbox = open_outbox()
    first = decode(bytes(envelopes(outbox, Stream.EVENTS)[0].body), Event)
    assert (first.kind, outbox.size()[0]) == (EventKind.STORAGE, 1)
    assert [path.name for path in tmp_path.glob("outbox.db.damaged-*")] == [first.reason.rpartition(" ")[2]]


def test_the_file_is_readable_by_its_owner_only(open_outbox: Open, tmp_path: Path) -> None:
    open_outbox().append(Stream.SAMPLES, batch())
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("outbox.db*")} == {0o600}


def test_many_threads_append_without_losing_or_doubling_a_number(open_outbox: Open) -> None:
    outbox = open_outbox()
    given: list[int] = []

    def work() -> None:
        given.extend([outbox.append(Stream.EVENTS, event("x")) for _ in range(50)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given) == list(range(1, 201))
    assert links(outbox, Stream.EVENTS) == [(n - 1, n) for n in range(1, 201)]


def test_several_messages_are_stored_together_and_listeners_told_once(open_outbox: Open) -> None:
    outbox = open_outbox()
    told: list[int] = []
    outbox.listen(lambda: told.append(outbox.size()[0]))
    assert outbox.append_all([(Stream.METRICS, batch()), (Stream.EVENTS, event("a")), (Stream.METRICS, batch())]) == [
        1,
        1,
        2,
    ]
    assert told == [3]


_APPEND_FOREVER = """
import sys, pathlib
from edge_agent.contract.messages import Event, EventKind
from edge_agent.contract.topics import Stream
from edge_agent.outbox.outbox import Outbox
outbox = Outbox(pathlib.Path(sys.argv[1]), fleet="reef", device="d1")
while True:
    print(outbox.append(Stream.EVENTS, Event(kind=EventKind.AGENT_STARTED, at_ms=1)), flush=True)
"""


def test_what_append_returned_for_is_there_after_a_kill(tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-c", _APPEND_FOREVER, str(tmp_path / "o.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repository) as process:
        assert process.stdout
        last = 0
        while last < 30:
            last = int(process.stdout.readline())
        process.kill()
        last = max([last, *(int(line) for line in process.stdout if line.endswith("\n"))])
    outbox = Outbox(tmp_path / "o.db", fleet="reef", device="d1")
    stored = links(outbox, Stream.EVENTS)
    assert stored[:last] == [(n - 1, n) for n in range(1, last + 1)]
    outbox.close()


def test_the_waiting_messages_are_plain_sqlite_for_whoever_must_look(open_outbox: Open, tmp_path: Path) -> None:
    open_outbox().append(Stream.EVENTS, event("x"))
    with sqlite3.connect(f"file:{tmp_path / 'outbox.db'}?mode=ro", uri=True) as database:
        assert database.execute("SELECT stream, sequence FROM messages").fetchall() == [("events", 1)]
    database.close()


_STARTS_ON_A_FULL_DISK = """
import sys
from pathlib import Path
from edge_agent.config import prepare_state
from edge_agent.contract.topics import Stream
from edge_agent.outbox.outbox import Outbox
state = Path(sys.argv[1])
(state / "slots.json").touch()
prepare_state(state)
outbox = Outbox(state / "outbox.db", fleet="reef", device="d1")
(first,) = outbox.pending(Stream.EVENTS, after=0, limit=9)
assert b"reports wait in memory" in first.payload
outbox.close()
"""


def test_a_disk_that_is_full_at_the_start_leaves_an_outbox_in_memory_which_says_so(tmp_path: Path) -> None:
    state = tmp_path / "state"
    done = run_on_full_disk([sys.executable, "-c", _STARTS_ON_A_FULL_DISK, str(state)], state)
    assert done.returncode == 0, done.stderr
    assert "models that are there are served" in done.stderr
    assert "kept in memory" in done.stderr
