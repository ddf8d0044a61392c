"""The queue that makes batches: order, sizes, delays, limits, deadlines."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.contract.errors import Busy
from edge_agent.contract.manifest import Batching, Overflow
from edge_agent.runtime.batcher import Batcher, Waiting

MS = 1_000_000


def waiting(
    work: str, *, rows: int = 1, key: str = "a", priority: int = 0, at_ns: int = 0, deadline_ns: int = 0
) -> Waiting[str]:
    return Waiting(work, rows, key, priority, at_ns, deadline_ns)


def filled(policy: Batching, *entries: Waiting[str]) -> Batcher[str]:
    batcher: Batcher[str] = Batcher(policy, "digits")
    for entry in entries:
        batcher.add(entry)
    return batcher


def taken(batcher: Batcher[str], now_ns: int = 0, *, running: bool = False) -> list[str]:
    return [entry.work for entry in batcher.take(now_ns, running=running)]


class Tensors:
    """What a request holds of the memory."""


def test_requests_that_have_run_are_forgotten_long_before_their_deadline() -> None:
    """Though one that never gets its turn stands before them among the deadlines."""
    batcher: Batcher[Tensors] = Batcher(Batching(max_rows=1), "digits")
    batcher.add(Waiting(Tensors(), 1, "a", 0, 0, 10 * MS))
    held: weakref.WeakSet[Tensors] = weakref.WeakSet()
    for _ in range(1000):
        tensors = Tensors()
        held.add(tensors)
        batcher.add(Waiting(tensors, 1, "a", 1, 0, 60_000 * MS))
        assert [entry.work for entry in batcher.take(0, running=False)] == [tensors]
    assert len(held) < 100
    assert len(batcher.expired(10 * MS)) == 1


def test_without_a_delay_what_waits_goes_together() -> None:
    batcher = filled(Batching(max_rows=8), waiting("1"), waiting("2", rows=2), waiting("3"))
    assert taken(batcher) == ["1", "2", "3"]
    assert len(batcher) == 0
    assert taken(batcher) == []


def test_a_batch_holds_no_more_than_its_rows_and_overtakes_nobody() -> None:
    batcher = filled(Batching(max_rows=4), waiting("1", rows=3), waiting("2", rows=2), waiting("3", rows=1))
    assert taken(batcher) == ["1"], "the third would fit, but came after the second"
    assert taken(batcher) == ["2", "3"]


def test_a_request_longer_than_a_batch_runs_alone() -> None:
    batcher = filled(Batching(max_rows=4), waiting("long", rows=100), waiting("2"))
    assert taken(batcher) == ["long"]
    assert taken(batcher) == ["2"]


def test_only_tensors_of_one_shape_make_a_batch() -> None:
    batcher = filled(Batching(max_rows=8), waiting("a1"), waiting("b1", key="b"), waiting("a2"))
    assert taken(batcher) == ["a1", "a2"]
    assert taken(batcher) == ["b1"]


def test_a_few_wait_for_company_until_the_delay_is_over() -> None:
    batcher = filled(Batching(max_rows=8, max_delay_us=5000), waiting("1"), waiting("2", at_ns=2 * MS))
    assert taken(batcher, 4 * MS) == []
    assert batcher.wake_at(running=False) == 5 * MS
    assert taken(batcher, 5 * MS) == ["1", "2"]


def test_a_full_batch_does_not_wait() -> None:
    batcher = filled(Batching(max_rows=2, max_delay_us=5000), waiting("1"), waiting("2"), waiting("3"))
    assert taken(batcher) == ["1", "2"]
    assert taken(batcher) == []


def test_a_batch_of_a_preferred_size_does_not_wait_and_is_the_largest_there_is() -> None:
    policy = Batching(max_rows=16, preferred_rows=(2, 4), max_delay_us=5000)
    batcher = filled(policy, *(waiting(str(number)) for number in range(7)))
    assert taken(batcher) == ["0", "1", "2", "3"]
    assert taken(batcher) == ["4", "5"]
    assert taken(batcher) == []
    assert taken(batcher, 5 * MS) == ["6"], "the delay is over"


def test_another_form_that_is_full_goes_before_one_that_waits() -> None:
    batcher = filled(
        Batching(max_rows=2, max_delay_us=5000), waiting("a"), waiting("b1", key="b"), waiting("b2", key="b")
    )
    assert taken(batcher) == ["b1", "b2"]
    assert taken(batcher) == []


def test_beside_a_running_batch_only_a_full_one_starts() -> None:
    batcher = filled(Batching(max_rows=2), waiting("1"))
    assert taken(batcher, running=True) == []
    assert batcher.wake_at(running=True) is None, "the end of the run is when to look again"
    batcher.add(waiting("2"))
    assert taken(batcher, running=True) == ["1", "2"]


def test_the_most_urgent_goes_first_and_those_of_one_priority_in_order() -> None:
    batcher = filled(
        Batching(max_rows=1),
        waiting("none"),
        waiting("2a", priority=2),
        waiting("1", priority=1),
        waiting("2b", priority=2),
        waiting("9", priority=9),
    )
    assert [taken(batcher)[0] for _ in range(5)] == ["1", "2a", "2b", "9", "none"]


def test_a_deadline_takes_a_request_out_unrun() -> None:
    late, other = waiting("late", deadline_ns=3 * MS), waiting("other")
    batcher = filled(Batching(max_rows=8, max_delay_us=10), late, other)
    assert batcher.wake_at(running=True) == 3 * MS
    assert batcher.expired(3 * MS - 1) == []
    assert batcher.expired(3 * MS) == [late]
    assert not late.queued
    assert taken(batcher, 4 * MS) == ["other"]


def test_a_request_that_cannot_wait_for_company_does_not_wait_at_all() -> None:
    batcher = filled(Batching(max_rows=8, max_delay_us=5000), waiting("1"), waiting("soon", deadline_ns=4 * MS))
    assert taken(batcher, 0) == ["1", "soon"]


def test_a_full_queue_refuses() -> None:
    batcher = filled(Batching(max_rows=8, max_queue=2), waiting("1"), waiting("2"))
    with pytest.raises(Busy, match="'digits': 2 requests wait already"):
        batcher.add(waiting("3", priority=1))
    assert taken(batcher) == ["1", "2"]


def test_drop_oldest_lets_go_of_the_oldest_of_the_least_urgent() -> None:
    policy = Batching(max_rows=8, max_queue=3, overflow=Overflow.DROP_OLDEST)
    old, urgent, young = waiting("old"), waiting("urgent", priority=1), waiting("young")
    batcher = filled(policy, old, urgent, young)
    assert batcher.add(waiting("new", priority=2)) is old
    assert batcher.add(waiting("newer")) is young
    assert taken(batcher) == ["urgent", "new", "newer"]


def test_drop_oldest_refuses_what_is_less_urgent_than_all_that_wait() -> None:
    policy = Batching(max_rows=8, max_queue=1, overflow=Overflow.DROP_OLDEST)
    batcher = filled(policy, waiting("urgent", priority=1))
    with pytest.raises(Busy):
        batcher.add(waiting("2", priority=2))
    assert taken(batcher) == ["urgent"]


def test_a_request_that_vanished_is_not_run() -> None:
    gone = waiting("gone", deadline_ns=MS)
    batcher = filled(Batching(max_rows=8), waiting("1"), gone, waiting("2"))
    assert batcher.remove(gone)
    assert not batcher.remove(gone), "once"
    assert taken(batcher) == ["1", "2"]
    assert batcher.expired(2 * MS) == []


def test_draining_gives_all_in_order() -> None:
    batcher = filled(Batching(), waiting("1"), waiting("2", priority=1))
    assert [entry.work for entry in batcher.drain()] == ["2", "1"]
    assert len(batcher) == 0


class Queue(RuleBasedStateMachine):
    """Every request leaves exactly once, by one of four doors, and never against the order of its priority."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = Batching(
            max_rows=4, preferred_rows=(3,), max_delay_us=5, max_queue=6, overflow=Overflow.DROP_OLDEST
        )
        self.batcher: Batcher[int] = Batcher(self.policy, "digits")
        self.now_ns = self.number = 0
        self.inside: dict[int, Waiting[int]] = {}

    @rule(
        rows=st.integers(1, 6),
        key=st.sampled_from("ab"),
        priority=st.integers(0, 3),
        timeout_ns=st.one_of(st.just(0), st.integers(1, 20_000)),
    )
    def arrive(self, rows: int, key: str, priority: int, timeout_ns: int) -> None:
        self.number += 1
        deadline_ns = self.now_ns + timeout_ns if timeout_ns else 0
        entry = Waiting(self.number, rows, key, priority, self.now_ns, deadline_ns)
        full = len(self.inside) == self.policy.max_queue
        try:
            dropped = self.batcher.add(entry)
        except Busy:
            assert full
            assert all(other.rank < entry.rank for other in self.inside.values())
            return
        assert (dropped is not None) == full
        if dropped is not None:
            del self.inside[dropped.work]
            assert all(other.rank <= dropped.rank for other in self.inside.values())
            assert all(other.work > dropped.work for other in self.inside.values() if other.rank == dropped.rank)
        self.inside[self.number] = entry

    @rule(ns=st.integers(0, 10_000))
    def pass_time(self, ns: int) -> None:
        self.now_ns += ns
        for entry in self.batcher.expired(self.now_ns):
            assert 0 < entry.deadline_ns <= self.now_ns
            del self.inside[entry.work]
        assert all(not entry.deadline_ns or entry.deadline_ns > self.now_ns for entry in self.inside.values())

    @rule(running=st.booleans())
    def run(self, running: bool) -> None:
        before = dict(self.inside)
        batch = self.batcher.take(self.now_ns, running=running)
        if not batch:
            wake_ns = self.batcher.wake_at(running=running)
            assert running or not before or (wake_ns is not None and wake_ns > self.now_ns)
            return
        rows = sum(entry.rows for entry in batch)
        assert rows <= self.policy.max_rows or len(batch) == 1
        assert len({entry.key for entry in batch}) == 1
        assert [entry.work for entry in batch] == [
            entry.work for entry in sorted(batch, key=lambda entry: (entry.rank, entry.work))
        ]
        for entry in batch:
            del self.inside[entry.work]
        last = batch[-1]
        for other in self.inside.values():  # nobody of the same form was overtaken
            if other.key == last.key:
                assert (other.rank, other.work) > (last.rank, last.work)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def vanish(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(self.inside)))
        assert self.batcher.remove(self.inside.pop(number))

    @invariant()
    def all_are_there(self) -> None:
        assert len(self.batcher) == len(self.inside) <= self.policy.max_queue
        assert all(entry.queued for entry in self.inside.values())

    def teardown(self) -> None:
        assert {entry.work for entry in self.batcher.drain()} == set(self.inside)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
