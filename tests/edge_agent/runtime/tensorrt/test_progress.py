from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.runtime.tensorrt.progress import Phases


def test_steps_of_the_outermost_phase_count_alike() -> None:
    phases = Phases()
    phases.start("building", None, 4)
    phases.step("building", 0)

    assert (phases.current, phases.share) == ("building", 0.25)


def test_an_inner_phase_fills_a_part_of_its_parents_step() -> None:
    phases = Phases()
    phases.start("building", None, 2)
    phases.start("optimising", "building", 10)
    before = phases.share
    phases.step("optimising", 4)

    assert phases.current == "optimising"
    assert 0.0 == before < phases.share < 0.5


def test_phases_after_each_other_within_one_step_all_move_it_and_never_fill_it() -> None:
    phases = Phases()
    phases.start("building", None, 1)
    shares = []
    for name in ("first", "second", "third", "fourth"):
        phases.start(name, "building", 2)
        phases.step(name, 0)
        shares.append(phases.share)
        phases.finish(name)

    assert shares == sorted(set(shares))
    assert shares[-1] < 1.0
    assert phases.current == "building"


def test_the_end_of_the_outermost_phase_is_the_end() -> None:
    phases = Phases()
    phases.start("building", None, 7)
    phases.finish("building")

    assert (phases.current, phases.share) == ("", 1.0)


def test_phases_that_nobody_announced_do_no_harm() -> None:
    phases = Phases()
    phases.step("unheard of", 3)
    phases.finish("unheard of")
    phases.start("orphan", "unheard of", 0)

    assert phases.share == 0.0


@given(st.lists(st.tuples(st.sampled_from(["start", "step", "finish"]), st.integers(0, 5), st.integers(0, 9))))
def test_whatever_is_told_in_whatever_order_the_share_stays_within_0_and_1_and_never_falls(events: Any) -> None:
    phases, last = Phases(), 0.0
    for kind, number, steps in events:
        name, parent = f"phase{number}", f"phase{number - 1}" if number else None
        if kind == "start":
            phases.start(name, parent, steps)
        elif kind == "step":
            phases.step(name, steps)
        else:
            phases.finish(name)
        assert last <= phases.share <= 1.0
        last = phases.share
