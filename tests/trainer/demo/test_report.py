from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console

from trainer.demo.report import DeviceReport, judge, table, write

MENDED = DeviceReport(
    id="cam-a",
    accuracy_before=0.97,
    accuracy_drifted=0.5,
    accuracy_recovered=0.93,
    labels_used=100,
    requests=3000,
    package_before="1" * 64,
    package="2" * 64,
)
OTHER = dataclasses.replace(MENDED, id="cam-b")


def test_a_fleet_that_is_right_again_and_lost_nothing_is_ok() -> None:
    report = judge([MENDED, OTHER], lost=0, duplicated=0, wall_s=100.04)
    assert report.ok
    assert report.problems == []
    assert report.wall_s == 100.0


@pytest.mark.parametrize(
    ("lost", "duplicated", "problem"), [(1, 0, "1 records were lost"), (0, 2, "2 records came twice")]
)
def test_one_record_lost_or_doubled_is_not_ok(lost: int, duplicated: int, problem: str) -> None:
    report = judge([MENDED], lost=lost, duplicated=duplicated, wall_s=1)
    assert not report.ok
    assert report.problems == [problem]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"requests_failed": 1}, "1 requests failed"),
        ({"accuracy_recovered": 0.8}, "only came back to 0.800"),
        ({"accuracy_drifted": 0.93, "accuracy_recovered": 0.97}, "did no harm"),
        ({"package_before": "2" * 64}, "still answers with the model that it began with"),
        ({"package": "3" * 64}, "not answer with one and the same model"),
    ],
)
def test_one_device_that_is_not_mended_makes_the_fleet_not_ok(changes: dict[str, object], problem: str) -> None:
    report = judge([MENDED, dataclasses.replace(OTHER, **changes)], lost=0, duplicated=0, wall_s=1)  # type: ignore[arg-type]
    assert not report.ok
    assert len(report.problems) == 1
    assert problem in report.problems[0]


def test_what_was_found_on_the_way_is_not_forgotten() -> None:
    report = judge([MENDED], lost=0, duplicated=0, wall_s=1, problems=["drift was seen before the world changed"])
    assert not report.ok
    assert report.problems == ["drift was seen before the world changed"]


def test_two_thirds_of_what_was_lost_must_come_back() -> None:
    lost = dataclasses.replace(MENDED, accuracy_before=0.9, accuracy_drifted=0.6)
    assert dataclasses.replace(lost, accuracy_recovered=0.801).recovered
    assert not dataclasses.replace(lost, accuracy_recovered=0.799).recovered


def test_the_report_is_written_and_shown_with_each_device(tmp_path: Path) -> None:
    report = judge([MENDED, OTHER], lost=0, duplicated=0, wall_s=1)
    write(report, tmp_path / "new" / "report.json")
    found = json.loads((tmp_path / "new" / "report.json").read_text())
    assert found["ok"] is True
    assert [device["id"] for device in found["devices"]] == ["cam-a", "cam-b"]
    console = Console(width=120)
    with console.capture() as shown:
        console.print(table(report))
    assert "0.500" in shown.get()
    assert "cam-b" in shown.get()
