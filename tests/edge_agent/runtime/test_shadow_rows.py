from __future__ import annotations

import itertools
import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.runtime.shadow_rows import ROWS_PER_REQUEST, RowQueue

MOST_BYTES = 200_000
offers = st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 40), st.integers(1, 2000), st.booleans())), max_size=40)


@given(offers)
def test_whatever_comes_the_bounds_hold_and_nothing_goes_uncounted(steps: list[tuple[int, int, bool] | None]) -> None:
    queue = RowQueue(most_requests=4, most_bytes=MOST_BYTES)
    offered = kept = taken = 0
    for step in steps:
        if step is None:
            rows = queue.take()
            if rows is not None:
                taken += 1
                assert 1 <= len(rows["x"]) == len(rows["y"]) <= ROWS_PER_REQUEST
        else:
            count, width, is_text = step
            x = np.zeros((count, width), np.float32)
            y = np.array([b"text"] * count, object) if is_text else np.arange(count)
            offered += 1
            kept += queue.offer({"x": x, "y": y})
        assert len(queue) <= 4
        assert len(queue) <= 1 or queue.bytes <= MOST_BYTES
    assert offered == kept + queue.dropped
    assert kept == taken + len(queue)
    while queue.take() is not None:
        pass
    assert queue.bytes == 0


@given(st.integers(1, 1000))
def test_rows_are_taken_from_all_over_a_request(rows: int) -> None:
    queue = RowQueue()
    queue.offer({"x": np.arange(rows)})
    taken = queue.take()
    assert taken is not None
    found = taken["x"].tolist()
    assert found[0] == 0
    assert len(found) <= ROWS_PER_REQUEST
    assert len({later - earlier for earlier, later in itertools.pairwise(found)}) <= 1
    assert rows - found[-1] <= -(-rows // ROWS_PER_REQUEST)


def test_small_rows_are_copied_and_large_ones_are_held() -> None:
    queue = RowQueue()
    small, large = np.zeros((1, 10), np.float32), np.zeros((1, 100_000), np.float32)
    queue.offer({"x": small})
    queue.offer({"x": large})
    assert queue.bytes == small.nbytes + large.nbytes
    for given_, is_held in ((small, False), (large, True)):
        taken = queue.take()
        assert taken is not None
        assert np.shares_memory(taken["x"], given_) is is_held


def test_a_held_request_counts_with_all_the_memory_that_it_keeps() -> None:
    queue = RowQueue()
    batch = np.zeros((64, 3000), np.float32)
    queue.offer({"x": batch})
    assert queue.bytes == batch.nbytes


def test_a_request_larger_than_the_queue_is_taken_alone() -> None:
    queue = RowQueue(most_bytes=1000)
    huge = {"x": np.zeros((1, 100_000), np.float32)}
    assert queue.offer(huge)
    assert not queue.offer(huge)
    assert queue.take() is not None
    assert queue.offer(huge)


def test_much_text_is_not_looked_at() -> None:
    queue = RowQueue()
    assert not queue.offer({"x": np.full((8, 1000), b"a", object)})
    assert queue.offer({"x": np.full((1, 3), "a", object)})
    assert not queue.offer({"x": np.array([None], object)})


def test_nobody_waits_for_the_lock() -> None:
    queue = RowQueue()
    queue.offer({"x": np.zeros(1)})
    with queue._lock:
        asker = threading.Thread(target=queue.offer, args=({"x": np.zeros(1)},))
        asker.start()
        asker.join(60.0)
        assert not asker.is_alive()
    assert (len(queue), queue.dropped) == (1, 1)
