"""Identifiers that are made for requests."""

from __future__ import annotations

import pytest

from edge_agent.serving.request_ids import RequestIds


def test_no_identifier_is_made_twice() -> None:
    ids, after_a_restart = RequestIds(), RequestIds()
    made = [ids.new(), *ids.several(5), ids.new(), *ids.several(3), after_a_restart.new(), *after_a_restart.several(2)]
    assert len(set(made)) == len(made) == 13


def test_those_of_one_run_are_a_sequence_of_texts_that_stay() -> None:
    several = RequestIds().several(4)
    texts = list(several)
    assert len(several) == 4
    assert [several[index] for index in range(4)] == texts == list(several)
    assert several[-1] == texts[3]
    assert several[1:3] == texts[1:3]
    assert texts[2] in several
    with pytest.raises(IndexError):
        several[4]
