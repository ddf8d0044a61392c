"""Identifiers that are kept as they were handed over."""

from __future__ import annotations

from edge_agent.monitor.ids import Ids


def test_identifiers_come_out_in_order_whether_alone_or_of_one_run() -> None:
    ids = Ids()
    assert not ids
    ids.append("a")
    ids.extend(["b", "c"])
    ids.extend(["d"])
    ids.append("e")
    assert list(ids) == ["a", "b", "c", "d", "e"]
    assert len(ids) == 5
