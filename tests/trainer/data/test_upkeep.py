"""Upkeep as the worker runs it: a process from a run file to a result."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.contract.errors import ConfigurationError
from edge_agent.contract.runs import RunFile, RunKind, RunResult, RunState
from tests.trainer.conftest import run_file
from tests.trainer.data.test_dataset_versions import camera_rows
from tests.trainer.data.test_import_table import source_of
from trainer.data.dataset import read_dataset
from trainer.data.upkeep import execute
from trainer.recipe import Recipe


def upkeep(lake: Path, **options: Any) -> RunFile:
    return run_file(lake, kind=RunKind.UPKEEP, options=options)


def as_process(run: RunFile, recipes: Path, work: Path) -> tuple[RunResult, list[dict[str, Any]]]:
    work.mkdir()
    (work / "run.json").write_bytes(msgspec.json.encode(run))
    done = subprocess.run(
        [sys.executable, "-m", "trainer.data.upkeep", work / "run.json", "--work", work, "--recipes", recipes],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    result = msgspec.json.decode((work / "result.json").read_bytes(), type=RunResult)
    return result, [msgspec.json.decode(line) for line in done.stdout.splitlines()]


def test_a_run_tends_the_lake(recipes: Path, lake_with: Callable[..., Path], tmp_path: Path) -> None:
    lake = lake_with(*camera_rows(30, labelled=0))
    result, lines = as_process(upkeep(lake, task="tend", retain_days=1), recipes, tmp_path / "work")
    assert (result.state, result.evaluation["dropped"]) == (RunState.DONE, {"2025-03-01": 30})
    assert lines[-1]["fraction"] == 1.0


def test_a_run_imports_a_table(recipe: Recipe, recipes: Path, tmp_path: Path) -> None:
    source, _ = source_of("parquet", tmp_path)
    run = upkeep(
        tmp_path / "lake", task="import", **{"from": source.shown}, map={"image": "pixels"}, label="digit",
        group="subject", key="id",
    )  # fmt: skip
    for new in (300, 0):
        result = execute(run, recipes, lambda *_: None)
        assert (result.state, result.evaluation["new"]) == (RunState.DONE, new)
    assert len(read_dataset(recipe, str(tmp_path / "lake")).rows) == 300
    base = execute(upkeep(tmp_path / "lake", task="import"), recipes, lambda *_: None)
    assert base.evaluation == {"new": 701, "replaced": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"task": "burn"}, "task is 'tend' or 'import'"), ({"task": "tend", "retain": 3}, "unknown field `retain`")],
)
def test_options_that_are_wrong_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        execute(upkeep(tmp_path / "lake", **options), None, lambda *_: None)


def test_a_run_that_cannot_be_done_fails_with_the_reason(recipes: Path, tmp_path: Path) -> None:
    run = upkeep(tmp_path / "lake", task="import", **{"from": "csv:/not/there"}, map={"image": "a"})
    result, _ = as_process(run, recipes, tmp_path / "work")
    assert (result.state, result.retry) == (RunState.FAILED, False)
    assert "/not/there: cannot be read" in result.reasons[0]
