"""The state machine of an update: what may follow what, and what never gets lost whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_agent.contract.messages import UpdateStep
from edge_agent.update import transitions
from edge_agent.update.slots_file import SlotRecord
from edge_agent.update.transitions import ALLOWED, BEFORE_SWAP, HERE, MAX_CRASHES, MAX_CUTS, RISKY, IllegalStep

digests = st.sampled_from(["", "a" * 64, "b" * 64, "c" * 64])
records = st.builds(
    SlotRecord, active=digests, last_known_good=digests, step=st.sampled_from(UpdateStep), target=digests,
    release=st.integers(0, 9), crashes=st.integers(-1, 3), cuts=st.integers(0, 3), boot=st.sampled_from(["", "1"]),
    orderly=st.booleans(), unproven=st.booleans(), watched_s=st.floats(0, 100),
    refused=st.dictionaries(digests, st.integers(0, 9), max_size=2),
)  # fmt: skip
unwatched = records.filter(lambda record: record.step is not UpdateStep.PROBATION)
_ORDER = [
    UpdateStep.DOWNLOADING, UpdateStep.VERIFIED, UpdateStep.STAGED, UpdateStep.SELF_TESTED, UpdateStep.SHADOW,
]  # fmt: skip


def _tested(record: SlotRecord, target: str, release: int = 1) -> SlotRecord:
    """The record when its candidate has passed its self-test."""
    record = transitions.begun(record, target, release=release, rollout="")
    for step in _ORDER[:4]:
        record = transitions.at(record, step)
    return record


@given(unwatched, digests.filter(bool), st.integers(0, 9))
def test_beginning_and_failing_never_touch_what_serves(record: SlotRecord, target: str, release: int) -> None:
    begun = transitions.begun(record, target, release=release, rollout="")
    for after in (begun, transitions.failed(begun, "why", refuse=True), transitions.at(begun, UpdateStep.STAGED)):
        assert (after.active, after.last_known_good) == (record.active, record.last_known_good)


@given(unwatched, digests.filter(bool))
def test_a_swap_that_is_rolled_back_ends_at_the_last_known_good(record: SlotRecord, target: str) -> None:
    swapped = transitions.swapped(_tested(record, target))
    back = transitions.rolled_back(swapped, "why", refuse=True)
    proven = record.active not in record.refused and not record.unproven
    good = record.active if record.active and proven else record.last_known_good
    assert back.active == (good if good != target else "")
    assert back.refused[target] == 1
    assert transitions.is_settled(back, target, 1)
    assert not transitions.is_settled(back, target, 2)


@given(records)
def test_committing_makes_the_active_package_the_last_known_good(record: SlotRecord) -> None:
    proven = record.step is UpdateStep.PROBATION or transitions.is_proven(record)
    if UpdateStep.COMMITTED not in ALLOWED[record.step] or not proven:
        with pytest.raises(IllegalStep):
            transitions.committed(record)
        return
    after = transitions.committed(record)
    assert after.last_known_good == after.active == record.active
    assert after.active not in after.refused


@given(records, digests.filter(bool))
def test_what_is_installed_by_hand_keeps_what_it_replaces_to_go_back_to(record: SlotRecord, package: str) -> None:
    after = transitions.installed(record, package)
    assert (after.active, after.step) == (package, UpdateStep.COMMITTED)
    assert package not in after.refused
    if record.step is UpdateStep.PROBATION or package == record.active or not transitions.is_proven(record):
        assert after.last_known_good == (record.last_known_good or package)
    elif record.active:
        assert after.last_known_good == record.active


def test_what_failed_on_probation_and_served_on_is_nothing_to_go_back_to() -> None:
    bad, good = "a" * 64, "b" * 64
    record = SlotRecord(active=bad, step=UpdateStep.FAILED, refused={bad: 1})
    assert transitions.installed(record, good).last_known_good == good
    assert transitions.swapped(_tested(record, good, 2)).last_known_good == ""


@given(records)
def test_only_a_start_while_the_target_runs_counts_as_a_crash_and_none_after_an_orderly_stop(
    record: SlotRecord,
) -> None:
    after = transitions.started(record, "1")
    counted = (after.crashes + after.cuts) - (record.crashes + record.cuts)
    assert counted == (record.step in RISKY and not record.orderly)
    assert after.orderly == (record.step in HERE), "before it is tested again, nothing of it runs"
    assert transitions.started(after, "1").crashes == after.crashes + (record.step is UpdateStep.PROBATION)
    assert transitions.started(transitions.stopped(record), "1").crashes == record.crashes


def test_a_machine_that_went_down_is_rather_the_power_plug_than_the_package() -> None:
    record = SlotRecord(active="a", target="a", step=UpdateStep.PROBATION, boot="1")
    for boot in range(2, MAX_CUTS + 1):
        record = transitions.started(record, str(boot))
        assert (record.crashes, transitions.blame(record)) == (0, "")
    record = transitions.started(record, "last")
    assert transitions.blame(record) == f"the machine went down {MAX_CUTS} times while it was tested or watched"
    crashing = SlotRecord(active="a", target="a", step=UpdateStep.SHADOW, boot="1")
    for _ in range(MAX_CRASHES):
        crashing = transitions.started(transitions.running(crashing), "1")
    assert "died 2 times while it was shadowed" in transitions.blame(crashing)


@given(records, st.sampled_from(UpdateStep))
def test_a_step_that_may_not_follow_is_an_error(record: SlotRecord, step: UpdateStep) -> None:
    if step in ALLOWED[record.step]:
        assert transitions.at(record, step).step is step
    else:
        with pytest.raises(IllegalStep, match=rf"from {record.step.value} to {step.value}"):
            transitions.at(record, step)


class OneModel(RuleBasedStateMachine):
    """A model through whatever order of events; ``on_disk`` is what garbage collection would have left."""

    @initialize()
    def begin(self) -> None:
        self.record, self.release = SlotRecord(), 0
        self.has_served, self.last_good, self.on_disk = False, "", set[str]()
        self.committed = {""}

    def _to(self, record: SlotRecord) -> None:
        self.record = record
        keep = {record.active, record.last_known_good}
        if record.step is not UpdateStep.FAILED:
            keep.add(record.target)
        self.on_disk &= keep

    @precondition(lambda self: self.record.step is not UpdateStep.PROBATION)
    @rule(package=st.sampled_from("abc"), is_newer=st.booleans())
    def wish(self, package: str, *, is_newer: bool) -> None:
        self.release += is_newer
        serves_proven = package == self.record.active and transitions.is_proven(self.record)
        if self.record.refused.get(package, -1) >= self.release or serves_proven:
            return
        if not transitions.is_under_way(self.record, package, self.release):
            self._to(transitions.begun(self.record, package, release=self.release, rollout=""))

    @precondition(lambda self: self.record.step in BEFORE_SWAP and self.record.step is not UpdateStep.SHADOW)
    @rule(shadows=st.booleans())
    def go_on(self, *, shadows: bool) -> None:
        here = self.record.step
        if here is UpdateStep.SELF_TESTED and not shadows:
            self._swap()
            return
        following = _ORDER[_ORDER.index(here) + 1] if here in _ORDER else UpdateStep.DOWNLOADING
        if following is UpdateStep.STAGED:
            self.on_disk.add(self.record.target)
        self._to(transitions.at(self.record, following))

    @precondition(lambda self: self.record.step is UpdateStep.SHADOW)
    @rule()
    def shadow_ends_well(self) -> None:
        self._swap()

    def _swap(self) -> None:
        self._to(transitions.swapped(self.record))
        self.has_served = True

    @precondition(lambda self: self.record.step in BEFORE_SWAP)
    @rule(refuse=st.booleans())
    def fail(self, *, refuse: bool) -> None:
        self._to(transitions.failed(self.record, "why", refuse=refuse))

    @precondition(lambda self: self.record.step is UpdateStep.PROBATION)
    @rule()
    def pass_probation(self) -> None:
        self._to(transitions.committed(self.record))
        self.last_good = self.record.active
        self.committed.add(self.record.active)

    @precondition(lambda self: self.record.step is UpdateStep.PROBATION)
    @rule(refuse=st.booleans(), rotten=st.booleans())
    def fail_on_probation(self, *, refuse: bool, rotten: bool = False) -> None:
        """``rotten``: what could be gone back to cannot be loaded."""
        if self.record.last_known_good not in ("", self.record.active) and not rotten:
            self._to(transitions.rolled_back(self.record, "why", refuse=refuse))
        else:  # answers that sometimes fail beat none
            self._to(transitions.failed(self.record, "why", refuse=refuse))

    @rule(boot=st.sampled_from("12"), orderly=st.booleans())
    def restart(self, boot: str, *, orderly: bool) -> None:
        record = transitions.started(transitions.stopped(self.record) if orderly else self.record, boot)
        self._to(record)
        if transitions.blame(record) and record.step in RISKY:
            if record.step is UpdateStep.PROBATION:
                self.fail_on_probation(refuse=True)
            else:
                self.fail(refuse=True)

    @invariant()
    def something_serves_if_something_ever_did(self) -> None:
        assert bool(self.record.active) == self.has_served

    @invariant()
    def what_serves_and_what_is_gone_back_to_are_on_the_disk(self) -> None:
        assert {self.record.active, self.record.last_known_good} - {""} <= self.on_disk

    @invariant()
    def the_newest_package_that_proved_itself_can_be_gone_back_to(self) -> None:
        assert self.last_good in ("", self.record.active, self.record.last_known_good)

    @invariant()
    def only_what_is_on_probation_serves_unproved_where_something_proved_is_there(self) -> None:
        record = self.record
        if record.step is not UpdateStep.PROBATION and self.last_good and transitions.is_proven(record):
            assert record.active == self.last_good

    @invariant()
    def only_what_has_committed_is_gone_back_to(self) -> None:
        assert self.record.last_known_good in self.committed


OneModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_whatever_happens_in_whatever_order_something_good_serves_and_is_on_the_disk = OneModel.TestCase
