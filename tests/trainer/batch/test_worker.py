from __future__ import annotations

import threading
from pathlib import Path

import msgspec

from edge_agent.contract.batch import JOB_OPTION
from edge_agent.contract.runs import RunKind, RunState
from edge_agent.runtime.package import Package
from tests.trainer.batch.jobs import delta_rows, images, job, table, write
from tests.trainer.conftest import run_file
from tests.trainer.fleet_server_double import FleetServerDouble
from tests.trainer.work.test_worker import Workplace


def test_a_worker_carries_out_a_step_of_kind_batch(package: Package, recipes: Path, tmp_path: Path) -> None:
    write(tmp_path / "in", "a.parquet", table(list(range(40)), images(40)))
    options = {JOB_OPTION: msgspec.to_builtins(job(package, tmp_path))}
    run = run_file(tmp_path / "lake", kind=RunKind.BATCH, options=options)
    with FleetServerDouble(run) as server:
        place = Workplace(server, recipes, tmp_path)
        result = place.worker.once(threading.Event())
        place.client.close()
    assert result is not None
    assert result.state is RunState.DONE, result.reasons
    assert server.results == [result]
    told = result.evaluation
    assert (told["rows"], told["output_kind"], told["output"]) == (40, "delta", str(tmp_path / "out"))
    assert {row["logical_time"] for row in delta_rows(tmp_path / "out")} == {run.logical_time}
