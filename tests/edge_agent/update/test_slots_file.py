"""The journal's transitions."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.messages import UpdateStep
from edge_agent.update import slots_file
from edge_agent.update.slots_file import SlotRecord, SlotsFile

digests = st.sampled_from(["", "a" * 64, "b" * 64, "c" * 64])
records = st.builds(
    SlotRecord, active=digests, last_known_good=digests, step=st.sampled_from(UpdateStep), target=digests,
    release=st.integers(0, 9), crashes=st.integers(-1, 3),
)  # fmt: skip


@given(records, digests.filter(bool), st.integers(0, 9))
def test_beginning_and_failing_never_touch_what_serves(record: SlotRecord, target: str, release: int) -> None:
    begun = slots_file.begun(record, target, release=release, rollout="")
    for after in (begun, slots_file.failed(begun, "why", refuse=True), slots_file.at(begun, UpdateStep.STAGED)):
        assert (after.active, after.last_known_good) == (record.active, record.last_known_good)


@given(records, digests.filter(bool))
def test_a_swap_that_is_rolled_back_ends_at_the_last_known_good(record: SlotRecord, target: str) -> None:
    swapped = slots_file.swapped(slots_file.begun(record, target, release=1, rollout=""))
    back = slots_file.rolled_back(swapped, "why", refuse=True)
    good = record.active or record.last_known_good
    assert back.active == (good if good != target else "")
    assert back.refused[target] == 1
    assert slots_file.is_settled(back, target, 1)
    assert not slots_file.is_settled(back, target, 2)


@given(records)
def test_committing_makes_the_active_package_the_last_known_good(record: SlotRecord) -> None:
    after = slots_file.committed(record)
    assert after.last_known_good == after.active == record.active
    assert after.active not in after.refused


@given(records, digests.filter(bool))
def test_what_is_installed_by_hand_keeps_what_it_replaces_to_go_back_to(record: SlotRecord, package: str) -> None:
    after = slots_file.installed(record, package)
    assert (after.active, after.step) == (package, UpdateStep.COMMITTED)
    assert package not in after.refused
    if record.step is UpdateStep.PROBATION or package == record.active:
        assert after.last_known_good == (record.last_known_good or package)
    elif record.active:
        assert after.last_known_good == record.active


def test_what_failed_on_probation_and_served_on_is_nothing_to_go_back_to() -> None:
    bad, good = "a" * 64, "b" * 64
    record = SlotRecord(active=bad, step=UpdateStep.FAILED, refused={bad: 1})
    assert slots_file.installed(record, good).last_known_good == good
    assert slots_file.swapped(slots_file.begun(record, good, release=2, rollout="")).last_known_good == ""


@given(records)
def test_only_a_start_during_test_or_probation_counts_as_a_crash(record: SlotRecord) -> None:
    counted = slots_file.started(record).crashes - record.crashes
    assert counted == (record.step in (UpdateStep.STAGED, UpdateStep.PROBATION))


def test_the_journal_is_read_back_as_written_with_private_names(tmp_path: Path) -> None:
    path = tmp_path / "slots.json"
    record = SlotRecord(active="a" * 64, step=UpdateStep.PROBATION, refused={"b" * 64: 3})
    SlotsFile(path).put("digits", record)
    again = SlotsFile(path)
    assert again.get("digits") == record
    assert again.get("other") == SlotRecord()
    assert again.packages() == {"a" * 64}


def test_a_record_that_cannot_be_written_is_not_believed(tmp_path: Path) -> None:
    journal = SlotsFile(tmp_path / "missing" / "slots.json")
    with pytest.raises(FileNotFoundError):
        journal.put("digits", SlotRecord(active="a" * 64))
    assert journal.get("digits") == SlotRecord()


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "slots.json").write_bytes(b'{"models": {"digits": {"step": "dancing"}}}')
    with pytest.raises(msgspec.ValidationError):
        SlotsFile(tmp_path / "slots.json")
