from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.monitor.predicted import Predicted


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=50), max_size=8))
def test_rows_are_counted_by_class(blocks: list[list[int]]) -> None:
    predicted = Predicted()
    for block in blocks:
        predicted.add(np.array(block))
    assert predicted.counts() == dict(Counter(index for block in blocks for index in block))


def test_what_was_seen_long_ago_fades() -> None:
    predicted = Predicted()
    for _ in range(200):
        predicted.add(np.zeros(1000, np.int64))
    for _ in range(600):
        predicted.add(np.ones(1000, np.int64))
    counts = predicted.counts()
    assert sum(counts.values()) <= 2 << 17
    assert counts[0] < counts[1] / 10
