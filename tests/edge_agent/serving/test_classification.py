"""Classification: the highest values of each row, as other servers write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edge_agent.serving.classification import classify


@given(
    values=hnp.arrays(
        st.sampled_from([np.uint8, np.int8, np.uint64, np.int64, np.float16, np.float32, np.float64]),
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=5),
    ),
    count=st.integers(1, 8),
)
def test_the_best_come_first_and_of_equals_the_lower_index(values: NDArray[Any], count: int) -> None:
    found = classify(values, count)
    rows = values.reshape(len(values), -1)
    assert found.shape == (len(rows), min(count, rows.shape[1]))
    for row, texts in zip(rows.tolist(), found, strict=True):
        indices = [int(text.split(b":")[1]) for text in texts]
        by_value = sorted(range(len(row)), key=lambda at: (-row[at] if row[at] == row[at] else float("inf"), at))
        # Infinities and NaN come last together, in order.
        assert indices == by_value[:count]


def test_values_are_written_with_six_digits_and_integers_plainly() -> None:
    assert classify(np.array([[1 / 3, 2.0]]), 2).tolist() == [[b"2.000000:1", b"0.333333:0"]]
    assert classify(np.array([[7, 255]], dtype=np.uint8), 1).tolist() == [[b"255:1"]]
    assert classify(np.array([[-np.inf, np.nan, np.inf]]), 3)[0, 0] == b"inf:2"


def test_labels_follow_the_index_where_there_are_any() -> None:
    assert classify(np.array([[1.0, 2.0, 3.0]]), 3, ("a", "b")).tolist() == [
        [b"3.000000:2", b"2.000000:1:b", b"1.000000:0:a"]
    ]
    assert classify(np.array([[1]]), 1, ("é",)).tolist() == [["1:0:é".encode()]]


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (1, 1), (0, 4), (2, 0)])
def test_all_axes_but_the_first_count_as_one(shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    per_row = int(np.prod(shape[1:]))
    assert classify(values, 100).shape == (shape[0], per_row)
