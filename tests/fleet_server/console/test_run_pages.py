"""The pages of runs: what waits, what is under way, and one run with its graph, metrics and log."""

from __future__ import annotations

import re

import httpx
import pytest

from edge_agent.contract.runs import RunKind, RunProgress, RunResult, RunState
from fleet_server.console.run_pages import curves
from fleet_server.schedules.graph import Step
from fleet_server.schedules.leases import Claimant
from fleet_server.schedules.slots import Schedule
from tests.fleet_server.console.harbour import Harbour
from tests.fleet_server.console.test_device_page import part
from tests.fleet_server.console.test_page import HOSTILE, page

STEPS = (Step(name="tend", kind=RunKind.UPKEEP), Step(name="train", needs=("tend",)))
KINDS = (RunKind.TRAIN, RunKind.UPKEEP)


def begin(harbour: Harbour) -> str:
    """A schedule whose first step is under way; gives its run."""
    nightly = Schedule(name="nightly", model="digits", kind="cron", expression="0 3 * * *", steps=STEPS)
    harbour.schedules.put(nightly)
    harbour.schedules.start("nightly", "a test")
    file = harbour.runs.claim(Claimant(worker="trainer-1", kinds=KINDS))
    assert file is not None
    for at, loss in enumerate((0.9, 0.5, 0.25)):
        progress = RunProgress(
            fence=file.fence,
            stage="compact",
            fraction=0.25 * at,
            message=f"file {at}",
            metrics={"loss": loss},
            log=f"line {at} {HOSTILE}\n",
        )
        harbour.runs.progress(file.run, progress)
    return file.run


async def test_an_empty_page_teaches_the_next_command(empty: Harbour) -> None:
    text = await page(empty, "/runs")
    assert "shoal schedules put nightly --model MODEL --cron" in part(text, "schedules").replace("&#34;", '"')
    assert "Nothing waits" in part(text, "queue")


async def test_schedules_and_runs_stand_beside_each_other(empty: Harbour) -> None:
    run = begin(empty)
    text = await page(empty, "/runs")
    schedules = part(text, "schedules")
    assert "nightly digits 0 3 * * * UTC tend, train after tend the newest is caught up" in schedules
    queue = part(text, "queue")
    assert "digits tend running 50% compact: file 2 manual nightly" in queue
    assert "digits train blocked waits for tend manual nightly" in queue
    assert f'href="/runs/{run}"' in text


async def test_a_run_shows_its_graph_its_metrics_and_its_log(empty: Harbour) -> None:
    run = begin(empty)
    text = await page(empty, f"/runs/{run}")
    assert "running 50%" in part(text, "numbers")
    assert "trainer-1" in part(text, "numbers")
    shown = part(text, "run")
    assert "compact: file 2" in shown
    assert "tend running" in shown
    assert "train blocked after tend" in shown
    assert "loss 0.25 0.25 to 0.9" in part(text, "metrics")
    assert "line 2" in part(text, "log")
    assert HOSTILE not in text
    empty.runs.finish(run, RunResult(fence=1, state=RunState.DONE, reasons=("3 files became one",)))
    text = await page(empty, f"/console/runs/{run}")
    assert "3 files became one" in part(text, "run")
    assert "done" in part(text, "numbers")


async def test_nobody_sees_them_without_a_login(empty: Harbour) -> None:
    run = begin(empty)
    transport = httpx.ASGITransport(app=empty.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://harbour") as client:
        for path in ("/runs", f"/runs/{run}"):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, "/login")
            assert (await client.get(f"/console{path}")).status_code == 401


def test_a_curve_is_scaled_to_its_drawing() -> None:
    points = [{"at_ms": at, "metrics": {"loss": value}} for at, value in ((0, 1.0), (50, 0.5), (100, 0.0))]
    (curve,) = curves(points)
    assert curve.points == "0.0,2.0 120.0,24.0 240.0,46.0"
    assert (curve.newest, curve.lowest, curve.highest) == (0.0, 0.0, 1.0)
    (flat,) = curves([{"at_ms": 5, "metrics": {"loss": 3.0}}])
    assert re.fullmatch(r"0\.0,\d+\.\d", flat.points)


@pytest.mark.parametrize("path", ["/runs/nope", "/console/runs/nope"])
async def test_a_run_that_is_not_there_is_not_found(empty: Harbour, path: str) -> None:
    transport = httpx.ASGITransport(app=empty.app)
    cookies = {"shoal_session": empty.session()}
    async with httpx.AsyncClient(transport=transport, base_url="http://harbour", cookies=cookies) as client:
        assert (await client.get(path)).status_code == 404
