from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from edge_agent.contract.batch import JOB_OPTION, BatchJob
from edge_agent.contract.runs import RunFile, RunKind, RunResult, RunState
from edge_agent.runtime.package import Package
from tests.trainer.batch.jobs import MIDNIGHT, delta_rows, expected, images, job, run, table, write
from trainer.batch.__main__ import RESULT_FILE
from trainer.batch.outputs.ledger import write_plan
from trainer.batch.outputs.open import open_output
from trainer.batch.plan import Plan
from trainer.batch.storage import Storage

ROWS = 36_000


def process(some: BatchJob, folder: Path) -> subprocess.Popen[bytes]:
    """The process that a worker would start."""
    folder.mkdir(parents=True, exist_ok=True)
    file = RunFile(
        run="run-9",
        model="digits",
        trigger="schedule",
        reason="a test",
        logical_time=MIDNIGHT,
        lake="",
        seed=0,
        fence=3,
        kind=RunKind.BATCH,
        options={JOB_OPTION: msgspec.to_builtins(some)},
    )
    (folder / "run.json").write_bytes(msgspec.json.encode(file))
    command = [sys.executable, "-m", "trainer.batch", str(folder / "run.json"), "--work", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_run_killed_in_its_middle_goes_on_and_answers_every_row_once(package: Package, tmp_path: Path) -> None:
    pixels = images(ROWS)
    for at in range(0, ROWS, 3_000):
        ids = list(range(at, at + 3_000))
        write(tmp_path / "in", f"{at:06d}.parquet", table(ids, pixels[at : at + 3_000]))
    # A row at a time, so that there is a middle to be killed in.
    some = job(package, tmp_path, resources={"workers": 1, "batch_rows": 1})
    first = process(some, tmp_path / "work")
    staged = tmp_path / "out" / "_shoal" / "nightly" / "staged"
    until = time.monotonic() + 60
    while len(list(staged.glob("*/done-*.json"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "out" / "_delta_log").exists()
    before = len(list(staged.glob("*/done-*.json")))
    assert 2 <= before < 12

    second = process(some, tmp_path / "work")
    output, errors = second.communicate(timeout=100)
    assert second.returncode == 0, errors.decode()
    result = msgspec.json.decode((tmp_path / "work" / RESULT_FILE).read_bytes(), type=RunResult)
    assert result.state is RunState.DONE, result
    assert result.evaluation["resumed_parts"] == before
    assert b'"stage":"done"' in output.splitlines()[-1]
    rows = delta_rows(tmp_path / "out")
    assert len(rows) == ROWS
    assert {int(row["key"]): row["prediction"] for row in rows} == dict(enumerate(expected(pixels)))
    assert not list(staged.iterdir())


def test_a_run_that_committed_and_could_not_say_so_is_not_repeated(package: Package, tmp_path: Path) -> None:
    write(tmp_path / "in", "a.parquet", table(list(range(40)), images(40)))
    some = job(package, tmp_path, replace=True)
    run(some, run="run-9")
    left = Plan(
        job="", logical_time=MIDNIGHT, package="", model="", version="", filesystem="", pieces=(), parts=(),
        watermark={}, after=0,
    )  # fmt: skip
    staged = Path(open_output(some, tmp_path / "work").stage(left.id).marks)
    write_plan(Storage(str(staged)), left)
    again = process(some, tmp_path / "work")
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors.decode()
    result = msgspec.json.decode((tmp_path / "work" / RESULT_FILE).read_bytes(), type=RunResult)
    assert (result.state, result.reasons) == (RunState.DONE, (f"batch 1 answered {MIDNIGHT} already",))
    assert len(delta_rows(tmp_path / "out")) == 40
    assert not staged.exists()


@pytest.mark.timeout(300)
def test_the_ray_engine_answers_alike(package: Package, tmp_path: Path) -> None:
    pixels = images(4000)
    for at in range(4):
        ids = list(range(at * 1000, (at + 1) * 1000))
        write(tmp_path / "in", f"{at}.parquet", table(ids, pixels[at * 1000 : (at + 1) * 1000]))
    some = job(package, tmp_path, resources={"engine": "ray", "workers": 2})
    one = process(some, tmp_path / "work")
    try:
        _, errors = one.communicate(timeout=280)
    finally:
        one.kill()
    assert one.returncode == 0, errors.decode()
    result = msgspec.json.decode((tmp_path / "work" / RESULT_FILE).read_bytes(), type=RunResult)
    assert result.state is RunState.DONE, result
    rows = {int(row["key"]): row["prediction"] for row in delta_rows(tmp_path / "out")}
    assert rows == dict(enumerate(expected(pixels)))
