"""The loop stays awake exactly while requests follow each other closely, and for nothing else."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from edge_agent.serving.busy_poll import BusyPoll

_FOR_LONG_US = 100_000.0


def _answers(poll: BusyPoll, count: int) -> None:
    for _ in range(count):
        poll.answered()


def _is_awake(poll: BusyPoll) -> bool:
    """Asked anew each time: a type checker takes an attribute that was true once for true ever after."""
    return poll.awake


async def _gives_up(poll: BusyPoll) -> None:
    for _ in range(10_000):
        if not poll.awake:
            return
        await asyncio.sleep(0.003)
    raise AssertionError("it never gave up")


async def test_close_requests_keep_the_loop_awake_until_nobody_comes() -> None:
    poll = BusyPoll(_FOR_LONG_US, cpus=2)
    _answers(poll, 8)
    assert _is_awake(poll)
    await _gives_up(poll)
    assert poll.missed == 1


async def test_requests_at_a_slow_pace_never_keep_it_awake() -> None:
    poll = BusyPoll(100.0, cpus=2)
    for _ in range(20):
        poll.answered()
        await asyncio.sleep(0.002)
        assert not _is_awake(poll)
    assert poll.missed == 0


async def test_what_an_answer_takes_is_no_pause_where_it_was_heard_of_the_request() -> None:
    unheard, heard = BusyPoll(1_000.0, cpus=2), BusyPoll(1_000.0, cpus=2)
    for _ in range(200):
        heard.heard()
        time.sleep(0.003)  # noqa: ASYNC251 - a model that holds the loop
        heard.answered()
        unheard.answered()
        if _is_awake(heard):
            break
    assert _is_awake(heard)
    assert not _is_awake(unheard)
    await _gives_up(heard)


async def test_a_request_that_comes_in_parts_is_waited_for_from_part_to_part() -> None:
    poll = BusyPoll(500_000.0, cpus=2)
    _answers(poll, 8)
    for _ in range(10):
        await asyncio.sleep(0.07)
        poll.heard()
    assert poll.missed == 0
    assert _is_awake(poll)
    await _gives_up(poll)


async def test_after_it_waited_in_vain_it_takes_more_close_requests() -> None:
    poll = BusyPoll(_FOR_LONG_US, cpus=2)
    _answers(poll, 5)
    assert _is_awake(poll)
    await _gives_up(poll)
    _answers(poll, 5)
    assert not _is_awake(poll)
    _answers(poll, 5)
    assert _is_awake(poll)
    await _gives_up(poll)
    assert poll.missed == 2


async def test_where_it_pays_it_does_not_become_shy() -> None:
    poll = BusyPoll(_FOR_LONG_US, cpus=2)
    for _ in range(5):
        _answers(poll, 40)
        await _gives_up(poll)
    _answers(poll, 5)
    assert _is_awake(poll)


async def test_timers_and_other_threads_are_heard_while_it_is_awake() -> None:
    poll = BusyPoll(10_000_000.0, cpus=2)
    loop = asyncio.get_running_loop()
    called, timed = asyncio.Event(), asyncio.Event()
    _answers(poll, 8)
    loop.call_later(0.01, timed.set)
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(called.set,))
    thread.start()
    await asyncio.wait_for(asyncio.gather(called.wait(), timed.wait()), 30)
    thread.join()
    assert _is_awake(poll)


@pytest.mark.parametrize(("limit_us", "cpus"), [(0.0, 2), (None, 1)])
async def test_it_is_off_where_nobody_wants_it_and_on_a_single_processor(limit_us: float | None, cpus: int) -> None:
    poll = BusyPoll(limit_us, cpus=cpus)
    _answers(poll, 50)
    assert not _is_awake(poll)


async def test_it_leaves_the_processor_to_models_that_run_in_threads() -> None:
    running: dict[int, object] = {1: "a run"}
    poll = BusyPoll(_FOR_LONG_US, running.keys(), cpus=2)
    _answers(poll, 50)
    assert not _is_awake(poll)
    running.clear()
    _answers(poll, 5)
    assert _is_awake(poll)
    running[1] = "another"
    await _gives_up(poll)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not told here")
async def test_where_only_one_processor_may_be_used_it_is_off_unless_somebody_asks_for_it() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        poll, told = BusyPoll(None), BusyPoll(_FOR_LONG_US)
    finally:
        os.sched_setaffinity(0, before)
    _answers(poll, 50)
    assert not _is_awake(poll)
    _answers(told, 50)
    assert _is_awake(told)  # whose application has processors of its own
    await _gives_up(told)
