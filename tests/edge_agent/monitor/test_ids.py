"""Ids of many requests in little memory."""

from __future__ import annotations

from edge_agent.monitor.ids import Ids
from edge_agent.serving.request_ids import RequestIds


def test_ids_stay_in_order_whether_they_came_alone_or_together() -> None:
    run = RequestIds().of_run(3)
    ids = Ids()
    ids.append("a")
    ids.extend(run, len(run))
    ids.extend(["b"], 1)
    assert [*ids] == ["a", *run, "b"]
    assert len(ids) == 5
    assert run[1] in ids
    assert "c" not in ids


def test_the_latest_request_with_an_id_is_the_one_that_has_it() -> None:
    run = RequestIds().of_run(2)
    ids = Ids()
    for request_id in ("a", "b", "a"):
        ids.append(request_id)
    ids.extend(run, len(run))
    assert dict(ids.latest({0, 1, 4})) == {1: "b", 4: run[1]}
    assert dict(ids.latest({2})) == {2: "a"}
    assert dict(ids.latest(())) == {}
    assert dict(ids.latest(range(5))) == {1: "b", 2: "a", 3: run[0], 4: run[1]}
