"""What failed is left alone for a while, and each time for longer."""

from __future__ import annotations

from edge_agent.runtime.pauses import Pauses


def test_each_pause_is_twice_as_long_as_the_one_before_and_none_longer_than_a_day() -> None:
    now_s = 1000.0
    pauses = Pauses(lambda: now_s)
    lengths_s = []
    for _ in range(12):
        assert pauses.why_not("digits") == ""
        pauses.failed("digits", "no memory")
        began_s = now_s
        while pauses.why_not("digits"):
            now_s += 60.0
        lengths_s.append(now_s - began_s)
    assert lengths_s[:4] == [600.0, 1200.0, 2400.0, 4800.0]
    assert max(lengths_s) == lengths_s[-1] == 86_400.0


def test_a_pause_says_why_and_how_long_and_ends_with_success() -> None:
    pauses = Pauses(lambda: 0.0)
    pauses.failed("digits", "no memory")
    assert pauses.why_not("letters") == ""
    assert pauses.why_not("digits").startswith("no memory; it is tried again ")
    assert pauses.why_not("digits").endswith(" 10 more minutes")
    pauses.went_well("digits")
    assert pauses.why_not("digits") == ""
