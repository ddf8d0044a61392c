"""Identifiers that the agent makes."""

from __future__ import annotations

import pytest

from edge_agent.serving.request_ids import RequestIds


def test_no_identifier_is_made_twice() -> None:
    ids, others = RequestIds(), RequestIds()
    runs = [ids.of_run(count) for count in (1, 16, 100)]
    made = [ids.new(), *(each for run in runs for each in run), ids.new(), *others.of_run(16)]
    assert len(set(made)) == len(made) == 1 + 117 + 1 + 16


def test_a_runs_identifiers_are_the_same_each_time_they_are_read() -> None:
    run = RequestIds().of_run(70)
    assert [run[index] for index in range(70)] == [*run]
    assert run[-1] == [*run][-1]
    assert run[2:4] == [*run][2:4]
    with pytest.raises(IndexError):
        run[70]
