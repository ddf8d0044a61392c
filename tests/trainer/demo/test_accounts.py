from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edge_agent.contract.lake import LABELS, SAMPLES
from trainer.data.lake import append
from trainer.demo.accounts import Received, Sent, difference, labels_before, received

SENT = Sent(requests=10, failed=0, labels={"r1": "3", "r2": "8"})
RECEIVED = Received(requests=10, samples=["r1", "r2", "r3"], labels=[("r1", "3"), ("r2", "8")])


def differs(**changes: Any) -> tuple[int, int]:
    return difference(SENT, dataclasses.replace(RECEIVED, **changes))


def test_nothing_is_missing_where_all_is_there_once() -> None:
    assert differs() == (0, 0)


def test_requests_that_were_not_counted_are_lost_and_those_counted_again_are_surplus() -> None:
    assert differs(requests=7) == (3, 0)
    assert differs(requests=12) == (0, 2)


def test_a_lost_sample_shows_though_its_label_came() -> None:
    assert differs(samples=["r1", "r3"]) == (1, 0)


def test_a_label_lost_and_another_doubled_do_not_cancel_out() -> None:
    assert differs(labels=[("r1", "3"), ("r1", "3")]) == (1, 1)


def test_a_label_that_came_as_another_is_lost_and_what_came_was_never_sent() -> None:
    assert differs(labels=[("r1", "3"), ("r2", "9")]) == (1, 1)


def test_a_sample_that_came_twice_is_surplus_and_what_was_dropped_is_lost() -> None:
    assert differs(samples=["r1", "r2", "r2"], withheld=4) == (4, 1)


def test_the_server_without_a_word_of_a_device_has_lost_everything() -> None:
    assert difference(SENT, Received(requests=0)) == (14, 0)


def row(device: str, request: str) -> dict[str, Any]:
    return {
        "request_id": request, "device": device, "model": "digits", "package": "p", "at_ms": 5, "day": "2025-03-01",
        "reason": "uniform", "inclusion_probability": 0.5, "prediction": "1", "confidence": 0.9, "margin": 0.8,
        "group": "", "inputs": b"", "outputs": b"", "label": "3", "source": "camera", "labelled_at_ms": 6,
    }  # fmt: skip


def test_what_the_server_has_is_read_from_lake_and_api_by_device(tmp_path: Path) -> None:
    lake, metrics = str(tmp_path / "lake"), [{"device": "a", "requests": 4}, {"device": "b", "requests": 5}]
    streams = [{"device": "a", "dropped": 2}, {"device": "a", "dropped": 1}, {"device": "b", "dropped": 0}]
    assert received(lake, metrics, {"streams": []})["a"] == Received(requests=4, samples=[], labels=[])
    append(lake, SAMPLES, [row("a", "r1"), row("b", "r1"), row("b", "r2")])
    append(lake, LABELS, [row("b", "r2")])
    found = received(lake, metrics, {"streams": streams})
    assert found["a"] == Received(requests=4, samples=["r1"], labels=[], withheld=3)
    assert sorted(found["b"].samples) == ["r1", "r2"]
    assert found["b"].labels == [("r2", "3")]


def test_labels_count_as_early_by_when_the_device_gave_them(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    assert labels_before(lake, 100) == 0
    append(
        lake,
        LABELS,
        [row("a", "r1"), row("a", "r2") | {"labelled_at_ms": 50}, row("import", "r0") | {"source": "import"}],
    )
    assert labels_before(lake, 6) == 0
    assert labels_before(lake, 7) == 1
    assert labels_before(lake, 51) == 2
