"""The journal on the disk."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edge_agent.contract.messages import UpdateStep
from edge_agent.update.judgement import Seen
from edge_agent.update.slots_file import SlotRecord, SlotsFile


def test_the_journal_is_read_back_as_written_with_private_names(tmp_path: Path) -> None:
    path = tmp_path / "slots.json"
    before = Seen(requests=3, failed=1, runs={1: (2, 5000)}, classes={"7": 2})
    record = SlotRecord(
        active="a" * 64, step=UpdateStep.PROBATION, refused={"b" * 64: 3}, before=before, group=("digits", "reader")
    )
    SlotsFile(path).put("digits", record)
    again = SlotsFile(path)
    assert again.get("digits") == record
    assert again.get("other") == SlotRecord()
    assert again.packages() == {"a" * 64}


def test_a_journal_of_an_earlier_agent_is_read(tmp_path: Path) -> None:
    (tmp_path / "slots.json").write_bytes(
        b'{"format": 1, "models": {"digits": {"active": "%b", "step": "probation", "crashes": -1}}}' % (b"a" * 64)
    )
    record = SlotsFile(tmp_path / "slots.json").get("digits")
    assert (record.active, record.step, record.crashes, record.group) == ("a" * 64, UpdateStep.PROBATION, -1, ())


def test_records_of_several_models_are_written_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "slots.json"
    journal = SlotsFile(path)
    journal.put_all({"digits": SlotRecord(active="a" * 64), "scaler": SlotRecord(active="b" * 64)})
    (tmp_path / ".slots.json.new").mkdir()
    with pytest.raises(OSError, match=r"slots\.json\.new"):
        journal.put_all({"digits": SlotRecord(active="c" * 64), "scaler": SlotRecord(active="d" * 64)})
    for file in (journal, SlotsFile(path)):
        assert [file.get(model).active for model in ("digits", "scaler")] == ["a" * 64, "b" * 64]


def test_a_record_that_cannot_be_written_is_not_believed(tmp_path: Path) -> None:
    journal = SlotsFile(tmp_path / "missing" / "slots.json")
    with pytest.raises(FileNotFoundError):
        journal.put("digits", SlotRecord(active="a" * 64))
    assert journal.get("digits") == SlotRecord()


@pytest.mark.parametrize(
    "data",
    [
        b'{"format": 1, "models": {"digits": {"step": "dancing"}}}', b"{}", b'{"digits": 7}', b'{"format": 1}',
        b'{"format": 99, "models": {}}', b'{"version": 1, "models": {}}',
    ],
)  # fmt: skip
def test_a_journal_of_something_else_is_refused_and_never_taken_for_an_empty_one(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "slots.json").write_bytes(data)
    with pytest.raises(msgspec.ValidationError):
        SlotsFile(tmp_path / "slots.json")


def test_what_an_update_needs_stays_on_the_disk_and_what_failed_does_not() -> None:
    a, b, c, d = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
    journal = SlotsFile(Path("/nowhere/slots.json"))
    journal.keep_in_memory(
        {
            "digits": SlotRecord(active=a, last_known_good=b, target=c, step=UpdateStep.SHADOW),
            "scaler": SlotRecord(target=d, step=UpdateStep.FAILED),
        }
    )
    assert journal.packages() == {a, b, c}


def test_a_flipped_bit_anywhere_in_the_journal_is_seen_and_what_it_said_before_holds(tmp_path: Path) -> None:
    path = tmp_path / "slots.json"
    journal = SlotsFile(path)
    records = [SlotRecord(active="a" * 64, release=release, reason="so") for release in (1, 2)]
    for record in records:
        journal.put("digits", record)
    written, seen = path.read_bytes(), 0
    for at in range(len(written)):
        path.write_bytes(bytes([*written[:at], written[at] ^ 1, *written[at + 1 :]]))
        try:
            read = SlotsFile(path).get("digits")
        except (msgspec.DecodeError, UnicodeDecodeError):
            mended, whole = SlotsFile.mended(path)
            assert whole
            assert mended.get("digits") == SlotsFile(path).get("digits") == records[0]
            seen += 1
        else:
            assert read == records[1], f"byte {at} was changed, and nobody saw it"
    assert seen > len(written) / 2


def test_a_damaged_journal_that_had_one_step_only_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "slots.json"
    SlotsFile(path).put("digits", SlotRecord(active="a" * 64))
    path.write_bytes(b"{")
    journal, mended = SlotsFile.mended(path)
    assert (mended, journal.models(), path.with_suffix(".damaged").read_bytes()) == (False, {}, b"{")
