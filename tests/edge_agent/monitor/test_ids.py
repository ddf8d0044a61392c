"""Ids of many requests in little memory."""

from __future__ import annotations

from edge_agent.monitor.ids import Ids
from edge_agent.serving.request_ids import RequestIds


def test_ids_stay_in_order_whether_they_came_alone_or_together() -> None:
    run = RequestIds().of_run(3)
    ids = Ids(["a", run, "b"], [1.0, 2.0, 3.0], 5)
    assert [*ids.timed()] == [("a", 1.0), (run[0], 2.0), (run[1], 2.0), (run[2], 2.0), ("b", 3.0)]
    assert len(ids) == 5


def test_the_latest_request_with_an_id_is_the_one_that_has_it() -> None:
    run = RequestIds().of_run(2)
    ids = Ids(["a", "b", "a", run], [1.0, 2.0, 3.0, 4.0], 5)
    assert [*ids.latest({0, 1, 4})] == [(4, run[1], 4.0), (1, "b", 2.0)]
    assert [*ids.latest({2})] == [(2, "a", 3.0)]
    assert not [*ids.latest(())]
    assert [*ids.latest(range(5))] == [(4, run[1], 4.0), (3, run[0], 4.0), (2, "a", 3.0), (1, "b", 2.0)]
