from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.link.backoff import Backoff
from edge_agent.link.window import Window


def test_only_so_many_messages_are_under_way() -> None:
    window = Window(messages=3)
    for sequence in (1, 2, 3):
        window.send(sequence, 10, now=0.0)
    assert (window.sent, window.room) == (3, 0)
    window.acknowledge(2, now=1.0)
    assert (window.sent, window.room) == (3, 2)


def test_only_so_many_bytes_are_under_way_but_always_one_message() -> None:
    window = Window(messages=10, size_bytes=100)
    assert window.room_bytes == 100
    window.send(1, 500, now=0.0)
    assert (window.room, window.room_bytes) == (0, 0)
    window.acknowledge(1, now=0.0)
    assert window.room == 10


def test_without_progress_it_is_sent_again_each_time_later() -> None:
    window = Window(timeout_s=10.0, longest_timeout_s=30.0)
    now, waits = 0.0, []
    for _ in range(4):
        window.send(1, 10, now)
        assert window.due_at is not None
        assert not window.rewind_if_due(window.due_at - 0.1)
        waits.append(window.due_at - now)
        now = window.due_at
        assert window.rewind_if_due(now)
        assert window.sent == 0
    assert waits == [10.0, 20.0, 30.0, 30.0]
    window.send(1, 10, now)
    window.send(2, 10, now)
    window.acknowledge(1, now)
    assert window.due_at == now + 10.0  # progress: patience as in the beginning


def test_a_repeated_acknowledgement_says_that_something_is_missing() -> None:
    window = Window(timeout_s=100.0, gap_delay_s=1.0)
    window.acknowledge(4, now=0.0)
    window.send(5, 10, now=0.0)
    window.send(6, 10, now=0.0)
    window.acknowledge(4, now=2.0)
    assert not window.rewind_if_due(2.9)
    assert window.rewind_if_due(3.0)
    assert window.sent == 4


def test_progress_after_a_repeated_acknowledgement_calls_it_off() -> None:
    window = Window(timeout_s=100.0, gap_delay_s=1.0)
    window.send(1, 10, now=0.0)
    window.send(2, 10, now=0.0)
    window.acknowledge(0, now=1.0)
    window.acknowledge(1, now=1.5)
    assert not window.rewind_if_due(50.0)


def test_a_new_connection_begins_at_the_watermark_and_a_new_epoch_at_nothing() -> None:
    window = Window()
    window.acknowledge(7, now=0.0)
    window.send(8, 10, now=0.0)
    window.restart()
    assert (window.sent, window.due_at) == (7, None)
    window.restart(forget=True)
    assert window.sent == 0


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_over_any_lossy_repeating_line_all_arrives_in_the_end(data: st.DataObject) -> None:
    """The server's rule (previous <= watermark < sequence), this window, and a line between that loses and repeats."""
    total, taken, watermark, now = 30, [], 0, 0.0
    window = Window(messages=4, timeout_s=5.0, gap_delay_s=1.0)
    for _ in range(5000):
        if watermark == total and window.due_at is None:
            break
        now += 0.5
        window.rewind_if_due(now)
        line = range(window.sent + 1, min(total, window.sent + window.room) + 1)
        for sequence in line:
            window.send(sequence, 10, now)
        came = [s for s in line for _ in range(data.draw(st.integers(0, 2) if now < 200 else st.just(1)))]
        for sequence in came:
            if sequence - 1 <= watermark < sequence:
                taken.append(sequence)
                watermark = sequence
        if came and (now >= 200 or data.draw(st.booleans())):
            window.acknowledge(watermark, now)
    assert taken == list(range(1, total + 1))


def test_backoff_grows_to_its_cap_never_in_step_and_begins_again() -> None:
    one, other = Backoff(1.0, 8.0, random.Random(1)), Backoff(1.0, 8.0, random.Random(2))
    delays = [one.next_s() for _ in range(40)]
    assert delays != [other.next_s() for _ in range(40)]
    assert all(delay <= bound for delay, bound in zip(delays, [1, 2, 4, 8, 8], strict=False))
    assert all(0.8 <= delay <= 8.0 for delay in delays[3:])
    one.reset()
    assert one.next_s() <= 1.0
