from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI, Header

from fleet_server.database import Database
from fleet_server.errors import NotAuthenticated
from fleet_server.http_errors import install
from fleet_server.monitoring.queries import latest_drift
from fleet_server.monitoring.routes import routes
from fleet_server.monitoring.service import MonitoringService
from tests.fakes.served_app import served
from tests.fleet_server.monitoring.fleet import MODEL, OLD, Fleet, reference

VIEWER = {"token": "viewer"}


def require_viewer(token: str = Header("")) -> None:
    if token != "viewer":
        raise NotAuthenticated("give a token")


@pytest.fixture
def client(db: Database, fleet: Fleet) -> Iterator[httpx.Client]:
    service = MonitoringService(db, reference)
    for _ in range(4):
        fleet.minute(d1=1.5, d2=1.5)
        service.evaluate(fleet.now)
    fleet.label("d1", right=40, wrong=40)
    service.evaluate(fleet.now)
    app = FastAPI()
    install(app)
    app.include_router(routes(service, require_viewer=require_viewer, clock=lambda: fleet.now))
    with served(app) as client:
        yield client


def test_drift_names_devices_features_and_the_fleets_reason(client: httpx.Client) -> None:
    found = client.get(f"/api/v1/monitoring/{MODEL}/drift", headers=VIEWER).json()
    assert found["fleet"]["alert"] is True
    assert found["fleet"]["reason"].startswith("2 of 2 devices drifted (d1, d2)")
    assert [(row["device"], row["verdict"], row["flagged"]) for row in found["devices"]] == [
        ("d1", "drifted", ["x"]),
        ("d2", "drifted", ["x"]),
    ]
    assert found["devices"][0]["features"][0]["feature"] == "x"
    assert len(found["history"]) == 4


def test_accuracy_shows_labels_estimates_and_the_rules_reason(client: httpx.Client) -> None:
    found = client.get(f"/api/v1/monitoring/{MODEL}/accuracy?bucket_s=300", headers=VIEWER).json()
    assert found["labels"][0]["value"] == 0.5
    assert found["estimates"][0]["value"] > 0.9
    assert found["packages"][OLD]["harmed"] is True
    assert "is below 95.0% promised" in found["packages"][OLD]["reason"]


def test_metrics_and_alerts_are_listed(client: httpx.Client) -> None:
    metrics = client.get(f"/api/v1/monitoring/{MODEL}/metrics", headers=VIEWER).json()
    assert [(row["device"], row["requests"]) for row in metrics] == [("d1", 400), ("d2", 400)]
    everything = client.get("/api/v1/monitoring/alerts?open=true", headers=VIEWER).json()
    assert {alert["kind"] for alert in everything} == {"drift", "harm"}
    assert client.get(f"/api/v1/monitoring/{MODEL}/alerts", headers=VIEWER).json() == everything


def test_machines_are_listed_all_or_one(client: httpx.Client) -> None:
    everything = client.get("/api/v1/machines", headers=VIEWER).json()
    assert [(one["device"], one["state"]["cpu_percent"]) for one in everything] == [("d1", 12.5), ("d2", 12.5)]
    assert client.get("/api/v1/machines?device=d2&window_s=60", headers=VIEWER).json()[0]["window_s"] == 60
    assert client.get("/api/v1/machines?device=d9", headers=VIEWER).json() == []
    assert client.get("/api/v1/machines?window_s=0", headers=VIEWER).status_code == 400


def test_strangers_see_nothing(client: httpx.Client) -> None:
    of_model = (f"monitoring/{MODEL}/{what}" for what in ("drift", "accuracy", "metrics", "alerts"))
    for path in ("monitoring/alerts", "machines", *of_model):
        answer = client.get(f"/api/v1/{path}")
        assert (answer.status_code, answer.json()) == (401, {"error": "give a token"})


def test_a_window_of_no_width_is_refused_in_words(client: httpx.Client) -> None:
    answer = client.get(f"/api/v1/monitoring/{MODEL}/accuracy?bucket_s=0", headers=VIEWER)
    assert answer.status_code == 400
    assert "bucket_s" in answer.json()["error"]


def test_a_moment_beyond_all_numbers_is_refused_in_words(client: httpx.Client) -> None:
    answer = client.get(f"/api/v1/monitoring/{MODEL}/accuracy?since_ms={1 << 70}", headers=VIEWER)
    assert answer.status_code == 400
    assert "since_ms" in answer.json()["error"]
    latest = client.get(f"/api/v1/monitoring/{MODEL}/accuracy?since_ms={(1 << 62) - 1}", headers=VIEWER)
    assert latest.json()["labels"] == []


def test_the_newest_windows_are_found_by_index_and_not_by_reading_all(db: Database, client: httpx.Client) -> None:
    asked: list[tuple[str, tuple[object, ...]]] = []

    def remember(
        _connection: object, _cursor: object, statement: str, parameters: tuple[object, ...], *_: object
    ) -> None:
        if "max(drift.id)" in statement:
            asked.append((statement, parameters))

    sa.event.listen(db.engine, "before_cursor_execute", remember)
    with db.read() as connection:
        found = latest_drift(connection, MODEL)
    sa.event.remove(db.engine, "before_cursor_execute", remember)
    assert [row["device"] for row in found] == ["d1", "d2"]
    ((statement, parameters),) = asked
    with db.read() as connection:
        plan = [str(row[3]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert plan
    assert not [step for step in plan if step.startswith("SCAN drift")], plan
