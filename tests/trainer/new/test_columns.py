"""What a recipe for a table expects of its numbers."""

from __future__ import annotations

import pyarrow as pa
import pytest

from trainer.new.columns import lay_out


@pytest.mark.parametrize(
    ("seen", "minimum", "maximum"),
    [
        ([2019.0, 2024.0], "2014.0", "2029.0"),  # not from 0
        ([3.1, 9.7], "0.0", "17.0"),
        ([-40.0, 85.0], "-200.0", "300.0"),
        ([1_234_560.0, 1_234_567.0], "1234553.0", "1234574.0"),  # not rounded to below what was seen
        ([-1_234_567.0, -1_234_560.0], "-1234574.0", "-1234553.0"),
        ([0.02, 0.05], "0.0", "0.09"),
        ([5.0, 5.0], "0.0", "10.0"),
        ([0.0, 0.0], "0.0", "1.0"),
        ([float("inf"), 1.0], "0.0", "2.0"),
    ],
)
def test_a_range_reaches_as_far_again_as_what_was_seen_and_never_ends_within_it(
    seen: list[float], minimum: str, maximum: str
) -> None:
    table = pa.table({"reading": seen, "label": ["a", "b"]})
    (column,) = lay_out(table, label="label").columns
    assert (column.constraint["minimum"], column.constraint["maximum"]) == (minimum, maximum)


def test_numbers_that_are_no_numbers_get_no_range() -> None:
    table = pa.table({"reading": [float("inf"), float("-inf")], "label": ["a", "b"]})
    (column,) = lay_out(table, label="label").columns
    assert column.constraint == {}
