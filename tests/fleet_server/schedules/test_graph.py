"""The rules of graphs alone: what is refused, and what follows from how a step ended."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.runs import RunKind, RunState
from fleet_server.schedules.graph import ENDED, FAILED, ScheduleRefused, Step, in_order, settle, steps_from

JOB = {
    "name": "night",
    "model": {"name": "digits"},
    "input": {"kind": "lake"},
    "output": {"kind": "delta", "path": "/data/answers"},
}
B, Q, DONE, FAIL = RunState.BLOCKED, RunState.QUEUED, RunState.DONE, RunState.FAILED


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([{"name": "a"}, {"name": "a"}], "two steps are called 'a'"),
        ([{"name": "a"}, {}], "a step without a name"),
        ([{"name": "A step"}], "step 'A step': use 1 to 63"),
        ([{"name": "a", "needs": ["b"]}], "step 'a' needs ['b']; there are ['a']"),
        ([{"name": "a", "needs": ["b"]}, {"name": "b", "needs": ["a"]}], "in a circle"),
        ([{"name": "a", "needs": ["a"]}], "in a circle"),
        ([{"name": "a", "kind": "cook"}], "Invalid enum value 'cook' - at `$[0].kind`"),
        ([{"name": "a", "retry": 3}], "unknown field `retry`"),
        ([{"name": "a", "retries": -1}], "retries"),
        ([{"name": "a", "timeout_s": 0}], "timeout_s"),
        ([{"name": "a", "kind": "batch"}], "a batch has its job among its options"),
        ([{"name": "a", "kind": "batch", "options": {"job": JOB | {"colour": 1}}}], "unknown field `colour`"),
        ([{"name": "a", "options": {"seed": -1}}], "seed -1 is no whole number"),
        ([{"name": f"s{n}"} for n in range(51)], "51 steps; a graph has at most 50"),
    ],
)
def test_a_graph_that_cannot_be_carried_out_is_refused_with_what_is_wrong(steps: list[Any], says: str) -> None:
    with pytest.raises(ScheduleRefused, match=re.escape(says)):
        steps_from("schedule s", steps)


def test_steps_come_in_an_order_in_which_they_can_be_carried_out() -> None:
    steps = [Step(name="answer", needs=("train", "import")), Step(name="train", needs=("import",)), Step(name="import")]
    assert in_order("s", steps) == ["import", "train", "answer"]


def test_what_a_step_needs_decides_whether_it_goes_on() -> None:
    assert settle({"a": (Q, ()), "b": (B, ("a",))}) == {}
    assert settle({"a": (DONE, ()), "b": (B, ("a",))}) == {"b": (Q, "")}
    assert settle({"a": (RunState.REFUSED, ()), "b": (B, ("a",))}) == {"b": (Q, "")}, "a verdict is no failure"
    assert settle({"a": (DONE, ()), "b": (RunState.RUNNING, ()), "c": (B, ("a", "b"))}) == {}


def test_a_failure_skips_all_that_hangs_on_it_and_says_why() -> None:
    graph = {"a": (FAIL, ()), "b": (B, ("a",)), "c": (B, ("b",)), "d": (Q, ())}
    assert settle(graph) == {
        "b": (RunState.SKIPPED, "not begun: step 'a', which it needs, failed"),
        "c": (RunState.SKIPPED, "not begun: step 'b', which it needs, was skipped"),
    }


def test_each_model_and_each_batch_job_has_a_lane_of_its_own() -> None:
    assert Step().lane("digits") == "train:digits"
    assert Step(model="other").lane("digits") == "train:other"
    assert Step(kind=RunKind.BATCH, options={"job": JOB}).lane("digits") == "batch:night"
    assert Step(kind=RunKind.UPKEEP).lane("digits") == Step(kind=RunKind.UPKEEP).lane("other")


def test_the_pause_before_a_retry_doubles_and_stays_within_a_year() -> None:
    step = Step(backoff_s=30)
    assert [step.pause_ms(failures) for failures in range(4)] == [30_000, 60_000, 120_000, 240_000]
    assert step.pause_ms(10_000) <= 366 * 86_400_000


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, tuple[RunState, list[str]]]:
    """Any graph without circles, its steps in any states."""
    count = draw(st.integers(1, 8))
    needs = [[f"s{n}" for n in range(at) if draw(st.booleans())] for at in range(count)]
    first = st.sampled_from([RunState.QUEUED, RunState.RUNNING, *ENDED])
    return {f"s{at}": (RunState.BLOCKED if needs[at] else draw(first), needs[at]) for at in range(count)}


@given(graphs())
def test_no_step_waits_for_ever_and_none_begins_too_early(graph: dict[str, tuple[RunState, list[str]]]) -> None:
    changed = settle(graph)
    states = {name: changed.get(name, (state, ""))[0] for name, (state, _) in graph.items()}
    for name, (state, needs) in graph.items():
        if state is not RunState.BLOCKED:
            assert name not in changed
        elif states[name] is RunState.QUEUED:
            assert all(states[need] in ENDED - FAILED for need in needs)
        elif states[name] is RunState.SKIPPED:
            assert any(states[need] in FAILED for need in needs)
        else:
            assert any(states[need] not in ENDED for need in needs)
