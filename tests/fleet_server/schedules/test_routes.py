from __future__ import annotations

from collections.abc import Iterator

import httpx
import msgspec
import pytest
import sqlalchemy as sa
from fastapi import FastAPI, Header

from edge_agent.contract.runs import RunFile, RunProgress, RunResult, RunState
from fleet_server.database import Database
from fleet_server.errors import Forbidden
from fleet_server.http_errors import install
from fleet_server.schedules.routes import routes
from fleet_server.schedules.schedule_service import ScheduleService
from fleet_server.schedules.service import RunService
from fleet_server.schedules.tables import runs
from tests.fakes.served_app import served
from tests.fleet_server.schedules.conftest import Clock

ADMIN, TRAINER, VIEWER = {"role": "admin"}, {"role": "trainer"}, {"role": "viewer"}
KNOWN = ["digits"]
NIGHTLY = {"model": "digits", "expression": "0 3 * * *"}


def require_admin(role: str = Header("")) -> None:
    if role != "admin":
        raise Forbidden("this needs the role admin")


def require_trainer(role: str = Header("")) -> None:
    if role != "trainer":
        raise Forbidden("this needs the role trainer")


def require_viewer(role: str = Header("")) -> None:
    if not role:
        raise Forbidden("this needs the role viewer")


@pytest.fixture
def client(db: Database, clock: Clock) -> Iterator[httpx.Client]:
    service = RunService(
        db,
        lake="/data/lake",
        lake_versions=lambda: (None, None),
        champion=lambda _model: None,
        clock=clock,
        known_models=lambda: KNOWN,
    )
    app = FastAPI()
    install(app)
    app.include_router(
        routes(
            service,
            ScheduleService(db, clock=clock),
            require_trainer=require_trainer,
            require_viewer=require_viewer,
            require_admin=require_admin,
        )
    )
    with served(app) as client:
        yield client


def claim(client: httpx.Client) -> RunFile:
    answer = client.post("/api/v1/runs/claim", json={"worker": "w1", "models": ["digits"]}, headers=TRAINER)
    assert answer.status_code == 200
    return msgspec.json.decode(answer.content, type=RunFile)


def test_a_worker_claims_reports_and_ends_a_run_that_a_person_asked_for(client: httpx.Client) -> None:
    assert client.post("/api/v1/runs/claim", json={"worker": "w1"}, headers=TRAINER).status_code == 204
    asked = client.post("/api/v1/runs", json={"model": "digits", "reason": "new lens"}, headers=ADMIN)
    assert asked.status_code == 201
    file = claim(client)
    assert (file.run, file.reason, file.trigger) == (asked.json()["run"], "new lens", "manual")

    progress = msgspec.json.encode(RunProgress(fence=file.fence, stage="fit", fraction=0.4, message="epoch 2 of 5"))
    assert client.post(f"/api/v1/runs/{file.run}/progress", content=progress, headers=TRAINER).status_code == 204
    seen = client.get(f"/api/v1/runs/{file.run}", headers=VIEWER).json()
    assert (seen["state"], seen["stage"], seen["fraction"]) == ("running", "fit", 0.4)

    result = RunResult(
        fence=file.fence,
        state=RunState.REFUSED,
        reasons=("slice 'dark' lost 4 %",),
        evaluation={"slices": {"dark": -0.04}},
    )
    done = client.post(f"/api/v1/runs/{file.run}/result", content=msgspec.json.encode(result), headers=TRAINER)
    assert done.status_code == 204
    (listed,) = client.get("/api/v1/runs?model=digits", headers=VIEWER).json()
    assert (listed["state"], listed["reasons"]) == ("refused", ["slice 'dark' lost 4 %"])
    assert listed["evaluation"] == {"slices": {"dark": -0.04}}


def test_a_worker_that_lost_its_lease_is_told_to_stop(client: httpx.Client, clock: Clock) -> None:
    client.post("/api/v1/runs", json={"model": "digits"}, headers=ADMIN)
    file = claim(client)
    clock.forward(120)
    claim(client)
    progress = msgspec.json.encode(RunProgress(fence=file.fence, stage="fit", fraction=0.4))
    answer = client.post(f"/api/v1/runs/{file.run}/progress", content=progress, headers=TRAINER)
    assert answer.status_code == 409
    assert "stop this run" in answer.json()["error"]


def test_a_run_of_a_model_that_nobody_knows_is_refused_with_what_is_known(client: httpx.Client) -> None:
    refused = client.post("/api/v1/runs", json={"model": "nope"}, headers=ADMIN)
    assert refused.status_code == 404
    assert "there is no model 'nope'; known are: digits" in refused.json()["error"]
    assert client.get("/api/v1/runs", headers=VIEWER).json() == []
    client.post("/api/v1/runs/claim", json={"worker": "w1", "models": ["letters"]}, headers=TRAINER)
    asked = client.post("/api/v1/runs", json={"model": "letters"}, headers=ADMIN)  # a worker is there that can train it
    assert asked.status_code == 201


def test_a_beginning_that_is_of_several_runs_is_answered_with_their_names(client: httpx.Client, db: Database) -> None:
    KNOWN.append("letters")
    made = [client.post("/api/v1/runs", json={"model": model}, headers=ADMIN).json()["run"] for model in KNOWN]
    KNOWN.remove("letters")
    with db.write() as connection:
        for at, run in enumerate(made):
            connection.execute(sa.update(runs).where(runs.c.id == run).values(id=f"ab{at}c"))
    refused = client.get("/api/v1/runs/ab", headers=VIEWER)
    assert refused.status_code == 409
    assert "several runs begin with 'ab': ab0c, ab1c; write more of it" in refused.json()["error"]
    assert client.get("/api/v1/runs/ab1/log", headers=VIEWER).status_code == 200
    assert client.get("/api/v1/runs/ab_", headers=VIEWER).status_code == 404, "no pattern"


def test_a_schedule_of_a_model_that_nobody_knows_yet_says_so(client: httpx.Client) -> None:
    steps = [{"name": "tend", "kind": "upkeep"}, {"name": "a"}, {"name": "b", "model": "digits"}]
    body = NIGHTLY | {"model": "nope", "steps": steps}
    assert client.put("/api/v1/schedules/nightly", json=body, headers=ADMIN).status_code == 204
    assert client.get("/api/v1/schedules/nightly", headers=VIEWER).json()["unknown_models"] == ["nope"]


def test_a_run_that_waits_is_cancelled_and_nobody_claims_it(client: httpx.Client) -> None:
    run = client.post("/api/v1/runs", json={"model": "digits"}, headers=ADMIN).json()["run"]
    done = client.post(f"/api/v1/runs/{run}/cancel", json={"reason": "wrong labels"}, headers=ADMIN)
    assert (done.json()["state"], done.json()["reasons"]) == ("cancelled", ["cancelled: wrong labels"])
    assert client.post("/api/v1/runs/claim", json={"worker": "w1"}, headers=TRAINER).status_code == 204
    again = client.post(f"/api/v1/runs/{run}/cancel", json={}, headers=ADMIN)
    assert again.status_code == 409
    assert "there is nothing to cancel" in again.json()["error"]
    assert client.post("/api/v1/runs/none/cancel", json={}, headers=ADMIN).status_code == 404


def test_the_worker_of_a_cancelled_run_learns_of_it_at_its_next_heartbeat(client: httpx.Client) -> None:
    client.post("/api/v1/runs", json={"model": "digits"}, headers=ADMIN)
    file = claim(client)
    assert client.post(f"/api/v1/runs/{file.run}/cancel", json={}, headers=ADMIN).status_code == 200
    progress = msgspec.json.encode(RunProgress(fence=file.fence, stage="fit", fraction=0.4))
    answer = client.post(f"/api/v1/runs/{file.run}/progress", content=progress, headers=TRAINER)
    assert answer.status_code == 409
    assert "(cancelled: asked for); stop this run" in answer.json()["error"]
    result = RunResult(fence=file.fence, state=RunState.RELEASED, reasons=("better",), package="b" * 64, version="2")
    late = client.post(f"/api/v1/runs/{file.run}/result", content=msgspec.json.encode(result), headers=TRAINER)
    assert late.status_code == 409


def test_schedules_are_put_listed_and_deleted(client: httpx.Client, clock: Clock) -> None:
    assert client.put("/api/v1/schedules/nightly", json=NIGHTLY, headers=ADMIN).status_code == 204
    (listed,) = client.get("/api/v1/schedules", headers=VIEWER).json()
    assert (listed["name"], listed["catch_up"], listed["enabled"]) == ("nightly", "latest", True)
    assert listed["next_ms"] > clock.at_ms
    assert client.delete("/api/v1/schedules/nightly", headers=ADMIN).status_code == 204
    assert client.delete("/api/v1/schedules/nightly", headers=ADMIN).status_code == 404


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (NIGHTLY | {"expression": "often"}, "write minute, hour"),
        (NIGHTLY | {"expression": "0 0 31 2 *"}, "'0 0 31 2 *' never comes"),
        (NIGHTLY | {"catch_up": "maybe"}, "catch_up"),
        (NIGHTLY | {"model": "No Model"}, "model 'No Model'"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_answered_with_what_to_write(
    client: httpx.Client, body: dict[str, str], says: str
) -> None:
    answer = client.put("/api/v1/schedules/nightly", json=body, headers=ADMIN)
    assert answer.status_code == 400
    assert says in answer.json()["error"]


def test_a_graph_goes_through_the_api_and_back(client: httpx.Client, clock: Clock) -> None:
    steps = [{"name": "tend", "kind": "upkeep"}, {"name": "train", "needs": ["tend"], "resources": {"cpus": 2}}]
    assert client.put("/api/v1/schedules/nightly", json=NIGHTLY | {"steps": steps}, headers=ADMIN).status_code == 204
    shown = client.get("/api/v1/schedules/nightly", headers=VIEWER).json()["steps"]
    assert [(step["name"], step["needs"], step["resources"]["cpus"]) for step in shown] == [
        ("tend", [], 0),
        ("train", ["tend"], 2),
    ]
    circle = [{"name": "a", "needs": ["b"]}, {"name": "b", "needs": ["a"]}]
    refused = client.put("/api/v1/schedules/nightly", json=NIGHTLY | {"steps": circle}, headers=ADMIN)
    assert refused.status_code == 400
    assert "schedule nightly: steps wait for each other in a circle: " in refused.json()["error"]
    body = {"from": "2025-06-01", "until": "2025-06-02T12:00:00Z"}
    filled = client.post("/api/v1/schedules/nightly/backfill", json=body, headers=ADMIN).json()
    assert filled["slots"] == ["2025-06-01T03:00:00Z", "2025-06-02T03:00:00Z"]
    assert len(filled["runs"]) == 4
    started = client.post("/api/v1/schedules/nightly/runs", json={"reason": "now"}, headers=ADMIN)
    assert started.status_code == 201
    again = client.post("/api/v1/schedules/nightly/runs", json={}, headers=ADMIN)
    assert again.status_code == 409
    assert "has its runs of 2025-06-15T15:06:40Z already" in again.json()["error"]
    ask = {"worker": "w1", "kinds": ["train", "upkeep"], "holding": []}
    file = msgspec.json.decode(client.post("/api/v1/runs/claim", json=ask, headers=TRAINER).content, type=RunFile)
    assert (file.step, file.trigger) == ("tend", "manual")
    back = client.post(f"/api/v1/runs/{file.run}/hand-back", json={"fence": file.fence}, headers=TRAINER)
    assert back.status_code == 204
    many = {"from": "1990-01-01", "until": "2025-01-01"}
    refused = client.post("/api/v1/schedules/nightly/backfill", json=many, headers=ADMIN)
    assert "more than 1000 slots" in refused.json()["error"]
    wrong = client.post("/api/v1/schedules/nightly/backfill", json=many | {"from": "soon"}, headers=ADMIN)
    assert "'soon' is no moment" in wrong.json()["error"]


def test_log_and_metrics_are_read_while_the_run_goes_on(client: httpx.Client) -> None:
    client.post("/api/v1/runs", json={"model": "digits"}, headers=ADMIN)
    file = claim(client)
    progress = RunProgress(fence=file.fence, stage="fit", fraction=0.4, metrics={"loss": 0.5}, log="epoch 2\n")
    client.post(f"/api/v1/runs/{file.run}/progress", content=msgspec.json.encode(progress), headers=TRAINER)
    log = client.get(f"/api/v1/runs/{file.run}/log", headers=VIEWER).json()
    assert log["text"] == "epoch 2\n"
    assert client.get(f"/api/v1/runs/{file.run}/log?after={log['next']}", headers=VIEWER).json()["text"] == ""
    (point,) = client.get(f"/api/v1/runs/{file.run}/metrics", headers=VIEWER).json()
    assert (point["metrics"], point["fraction"], point["attempt"]) == ({"loss": 0.5}, 0.4, 1)


def test_a_report_that_is_none_is_refused_in_words(client: httpx.Client) -> None:
    answer = client.post("/api/v1/runs/x/progress", content=b'{"fence": "one"}', headers=TRAINER)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("RunProgress: ")


def test_each_route_asks_for_its_role(client: httpx.Client) -> None:
    assert client.post("/api/v1/runs", json={"model": "digits"}, headers=TRAINER).status_code == 403
    assert client.post("/api/v1/runs/x/cancel", json={}, headers=TRAINER).status_code == 403
    assert client.post("/api/v1/runs/claim", json={"worker": "w"}, headers=ADMIN).status_code == 403
    assert client.post("/api/v1/runs/x/progress", content=b"{}", headers=VIEWER).status_code == 403
    assert client.post("/api/v1/runs/x/result", content=b"{}", headers=VIEWER).status_code == 403
    assert client.put("/api/v1/schedules/s", json=NIGHTLY, headers=VIEWER).status_code == 403
    assert client.post("/api/v1/runs/x/hand-back", json={"fence": 1}, headers=ADMIN).status_code == 403
    assert client.post("/api/v1/runs/x/retry", headers=VIEWER).status_code == 403
    assert client.post("/api/v1/schedules/s/runs", json={}, headers=VIEWER).status_code == 403
    assert client.post("/api/v1/schedules/s/backfill", json={}, headers=VIEWER).status_code == 403
    assert client.get("/api/v1/runs/x/log").status_code == 403
    assert client.get("/api/v1/runs").status_code == 403
    assert client.get("/api/v1/schedules").status_code == 403


def test_the_api_documents_the_contracts_structs(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    body = paths["/api/v1/runs/{run}/result"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "released" in body["properties"]["state"]["enum"]
    answer = paths["/api/v1/runs/claim"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert "samples_version" in answer["properties"]
