from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from edge_agent.contract.errors import MessageError, PackageError
from edge_agent.contract.messages import ProfileReport
from edge_agent.contract.profile import FeatureCounts
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.topics import Stream
from fleet_server.database import Database, metadata
from fleet_server.monitoring.intake import on_profile
from fleet_server.monitoring.service import MonitoringService
from fleet_server.monitoring.settings import DriftRule, HarmRule, LabelBudget, MonitoringSettings
from fleet_server.monitoring.tables import drift, profile_windows, serving
from tests.fakes.postgres import postgres
from tests.fleet_server.monitoring.fleet import MODEL, NEW, OLD, START, Fleet, envelope, reference

SETTINGS = MonitoringSettings(
    drift=DriftRule(min_rows=200, persistence=2),
    harm=HarmRule(min_labels=30, window_s=3_600),
    budget=LabelBudget(alert_per_minute=20, per_day=200),
)
BASE = SamplingPolicy(labels_per_minute=1.0)


class World:
    """A monitoring service whose wishes are written down."""

    def __init__(self, db: Database, **parts: Any) -> None:
        self.policies: list[float] = []
        self.runs: list[str] = []
        self.held: str | None = None
        self.begins = False  # whether what is asked for holds from then on
        chosen: dict[str, Any] = {"settings": SETTINGS, "base_sampling": lambda _model: BASE} | parts
        self.service = MonitoringService(
            db,
            reference,
            set_sampling=lambda _model, policy: self.policies.append(policy.labels_per_minute),
            request_run=self._request,
            hold=lambda _model: self.held,
            **chosen,
        )

    def _request(self, model: str, trigger: str, reason: str) -> None:
        self.runs.append(f"{model} {trigger}: {reason}")
        if self.begins:
            self.held = "run run-1 is queued"


@pytest.fixture
def world(db: Database) -> World:
    return World(db)


def verdicts(world: World, fleet: Fleet) -> dict[str, str]:
    return {row["device"]: row["verdict"] for row in world.service.drift(MODEL, fleet.now)["devices"]}


def open_alerts(world: World) -> set[tuple[str, str]]:
    return {(alert["kind"], alert["device"]) for alert in world.service.alerts(MODEL, only_open=True)}


def live(world: World, fleet: Fleet, minutes: int, **means: float) -> None:
    for _ in range(minutes):
        fleet.minute(**means)
        world.service.evaluate(fleet.now)


def test_a_window_waits_until_enough_rows_have_come(world: World, fleet: Fleet, db: Database) -> None:
    fleet.minute(d1=0.0)
    assert world.service.evaluate(fleet.now) == []
    fleet.minute(d1=0.0)
    (row,) = world.service.evaluate(fleet.now)
    assert (row["rows"], row["from_ms"], row["until_ms"], row["verdict"]) == (200, START, START + 120_000, "none")
    assert world.service.evaluate(fleet.now) == [], "no window is judged twice"


def test_a_shifted_device_is_first_suspect_then_drifted_and_its_feature_named(world: World, fleet: Fleet) -> None:
    live(world, fleet, 2, d1=1.5, d2=0.0)
    assert verdicts(world, fleet) == {"d1": "suspect", "d2": "none"}
    assert open_alerts(world) == set()
    live(world, fleet, 2, d1=1.5, d2=0.0)
    assert verdicts(world, fleet) == {"d1": "drifted", "d2": "none"}
    assert open_alerts(world) == {("drift", "d1")}, "one device of two is no fleet"
    (alert,) = world.service.alerts(MODEL)
    assert alert["reason"].startswith("x (PSI ")
    assert alert["opened_at_ms"] == fleet.now


def test_when_more_devices_drift_than_chance_explains_the_fleet_alerts_and_asks_for_labels(
    world: World, fleet: Fleet
) -> None:
    live(world, fleet, 4, d1=1.5, d2=1.2, d3=0.0)
    assert open_alerts(world) == {("drift", ""), ("drift", "d1"), ("drift", "d2")}
    assert world.policies == [20.0]
    live(world, fleet, 4, d1=0.0, d2=0.0, d3=0.0)
    assert open_alerts(world) == set()
    assert world.policies == [20.0, 1.0], "the trickle is back to what the package says"
    closed = world.service.alerts(MODEL)
    assert all(alert["closed_at_ms"] is not None for alert in closed)
    assert world.runs == [], "drift alone trains nothing"


def test_a_device_that_the_reference_knows_is_compared_with_itself(world: World, fleet: Fleet) -> None:
    live(world, fleet, 12, far=1.5, farther=-2.0, near=0.0)
    assert set(verdicts(world, fleet).values()) == {"none"}
    assert world.service.alerts(MODEL) == []
    live(world, fleet, 4, far=0.5, farther=-2.0, near=1.5)
    assert verdicts(world, fleet) == {"far": "drifted", "farther": "none", "near": "drifted"}
    (row,) = (row for row in world.service.drift(MODEL, fleet.now)["devices"] if row["device"] == "far")
    assert row["flagged"] == ["x"], "the others' data would be new to it; confidence it shares with them"


def test_a_new_package_starts_new_windows_with_its_own_bins(world: World, fleet: Fleet) -> None:
    live(world, fleet, 4, d1=2.0, d2=2.0)
    assert set(verdicts(world, fleet).values()) == {"drifted"}
    fleet.serves = {"d1": NEW, "d2": NEW}
    live(world, fleet, 1, d1=2.0, d2=2.0)
    assert verdicts(world, fleet) == {}
    assert open_alerts(world) == set(), "what the old package thought of the data says nothing of the new one"
    live(world, fleet, 3, d1=2.0, d2=2.0)
    assert set(verdicts(world, fleet).values()) == {"none"}


def test_what_gathered_while_the_server_was_down_is_judged_window_by_window(world: World, fleet: Fleet) -> None:
    for _ in range(7):
        fleet.minute(d1=1.5)
    rows = world.service.evaluate(fleet.now)
    assert [row["verdict"] for row in rows] == ["suspect", "drifted", "drifted"]
    assert {row["since_ms"] for row in rows} == {START}


def test_windows_of_a_package_not_known_yet_wait_for_it(world: World, fleet: Fleet, db: Database) -> None:
    fleet.serves["d1"] = "c" * 64
    live(world, fleet, 3, d1=0.0)
    assert verdicts(world, fleet) == {}
    with db.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).where(profile_windows.c.pending)).scalar() == 3


def test_counts_in_other_bins_than_the_packages_are_left_out(world: World, fleet: Fleet, db: Database) -> None:
    counts = {"x": FeatureCounts(bins=(100, 200))}
    report = ProfileReport(model=MODEL, package=OLD, from_ms=START, until_ms=START, rows=300, counts=counts)
    with db.write() as connection:
        on_profile(connection, envelope("d1", Stream.PROFILES, report), report)
    live(world, fleet, 5, d1=0.0)
    with db.read() as connection:
        judged = connection.execute(sa.select(sa.func.sum(drift.c.rows))).scalar()
    assert judged == 400, "only what waited together with them is lost"


def test_counts_that_contradict_each_other_are_refused(db: Database) -> None:
    counts = {"x": FeatureCounts(bins=(1, 2))}
    report = ProfileReport(model=MODEL, package=OLD, from_ms=START, until_ms=START, rows=4, counts=counts)
    with db.write() as connection, pytest.raises(MessageError, match="counts 3 rows, the window 4"):
        on_profile(connection, envelope("d1", Stream.PROFILES, report), report)


def test_harm_asks_for_a_run_and_opens_an_alert(world: World, fleet: Fleet) -> None:
    live(world, fleet, 1, d1=0.0, d2=0.0)
    fleet.label("d1", right=10, wrong=10)
    fleet.label("d2", right=10, wrong=10)
    world.service.evaluate(fleet.now)
    assert open_alerts(world) == {("harm", "")}
    (asked,) = world.runs
    assert asked.startswith("digits harm: accuracy 50.0%, at most ")
    assert asked.endswith("is below 95.0% promised less 5.0% tolerance (40 labels of 2 devices)")


def test_while_something_holds_no_run_is_asked_for(world: World, fleet: Fleet) -> None:
    world.held = "rollout 7 is under way"
    live(world, fleet, 1, d1=0.0)
    fleet.label("d1", right=10, wrong=30)
    world.service.evaluate(fleet.now)
    assert world.runs == []
    assert open_alerts(world) == {("harm", "")}


def test_after_a_rollout_the_labels_of_the_old_package_no_longer_count(world: World, fleet: Fleet) -> None:
    live(world, fleet, 1, d1=0.0)
    fleet.label("d1", right=10, wrong=30)
    world.service.evaluate(fleet.now)
    assert len(world.runs) == 1
    fleet.serves["d1"] = NEW
    live(world, fleet, 1, d1=2.0)
    fleet.label("d1", right=0, wrong=30, package=OLD)  # late feedback on what the old one said
    world.service.evaluate(fleet.now)
    assert open_alerts(world) == set()
    assert len(world.runs) == 1
    assert world.service.accuracy(MODEL, fleet.now)["packages"] == {}


def test_after_an_update_labels_are_asked_for_until_they_can_confirm_it(db: Database, fleet: Fleet) -> None:
    world = World(db, parent={OLD: None, NEW: OLD}.get)
    live(world, fleet, 4, d1=2.0, d2=2.0)
    assert world.policies == [20.0], "drift"
    world.held = "rollout 7 of 2 is running"
    live(world, fleet, 1, d1=2.0, d2=2.0)
    assert world.policies == [20.0, 1.0]
    fleet.serves = {"d1": NEW, "d2": NEW}
    live(world, fleet, 2, d1=2.0, d2=2.0)
    assert world.policies == [20.0, 1.0], "under way still"
    world.held = None
    live(world, fleet, 1, d1=2.0, d2=2.0)
    assert world.policies == [20.0, 1.0, 20.0]
    budget = world.service.accuracy(MODEL, fleet.now)["budget"]
    assert budget["reason"] == f"raised: whether package {NEW[:12]} is better is to be confirmed by 30 labels"
    fleet.label("d1", right=29, wrong=0)
    live(world, fleet, 1, d1=2.0, d2=2.0)
    assert world.policies[-1] == 20.0
    fleet.label("d2", right=1, wrong=0)
    live(world, fleet, 1, d1=2.0, d2=2.0)
    assert world.policies == [20.0, 1.0, 20.0, 1.0]
    view = world.service.accuracy(MODEL, fleet.now)
    assert (view["packages"][NEW]["fleet"]["value"], view["budget"]["reason"]) == (1.0, "as the package says")


def test_an_update_that_made_it_worse_is_found_out_by_the_labels_that_it_asked_for(db: Database, fleet: Fleet) -> None:
    world = World(db, parent={NEW: OLD}.get)
    fleet.serves = {"d1": NEW, "d2": NEW}
    live(world, fleet, 1, d1=2.0, d2=2.0)
    assert world.policies == [20.0]
    fleet.label("d1", right=10, wrong=20)
    live(world, fleet, 1, d1=2.0, d2=2.0)
    assert len(world.runs) == 1


def test_the_time_to_confirm_an_update_is_limited_and_a_first_package_has_nothing_to_confirm(
    db: Database, fleet: Fleet
) -> None:
    world = World(db, parent={OLD: None, NEW: OLD}.get)
    live(world, fleet, 1, d1=0.0)
    assert world.policies == []
    fleet.serves = {"d1": NEW}
    live(world, fleet, 59, d1=2.0)
    assert world.policies == [20.0]
    live(world, fleet, 2, d1=2.0)
    assert world.policies == [20.0, 1.0]


def test_a_package_of_which_nothing_is_known_is_not_to_be_confirmed(db: Database, fleet: Fleet) -> None:
    def parent(_package: str) -> str | None:
        raise PackageError("not registered")

    world = World(db, parent=parent)
    live(world, fleet, 1, d1=0.0)
    assert world.policies == []


def test_once_a_run_is_asked_for_no_more_labels_are(db: Database, fleet: Fleet) -> None:
    world = World(db)
    live(world, fleet, 4, d1=1.5, d2=1.5)
    assert world.policies == [20.0]
    world.begins = True
    fleet.label("d1", right=10, wrong=30)
    world.service.evaluate(fleet.now)
    assert (len(world.runs), world.policies) == (1, [20.0, 1.0])
    budget = world.service.accuracy(MODEL, fleet.now)["budget"]
    assert budget["reason"] == "as the package says, for more labels could not be used: run run-1 is queued"
    world.begins, world.held = False, None  # the run was refused, the next one must wait for the cool-down
    live(world, fleet, 1, d1=1.5, d2=1.5)
    assert world.policies == [20.0, 1.0, 20.0]


def test_why_labels_are_asked_for_is_kept_up_to_date_though_their_number_stays(db: Database, fleet: Fleet) -> None:
    world = World(db, parent={NEW: OLD}.get)
    live(world, fleet, 4, d1=2.0, d2=2.0)
    before = world.service.accuracy(MODEL, fleet.now)["budget"]
    fleet.serves = {"d1": NEW, "d2": NEW}
    live(world, fleet, 1, d1=2.0, d2=2.0)
    after = world.service.accuracy(MODEL, fleet.now)["budget"]
    assert world.policies == [20.0]
    assert (before["reason"][:9], after["reason"][:16]) == ("raised: 2", "raised: whether ")
    assert before["since_ms"] == after["since_ms"]


def test_labels_from_before_a_drift_do_not_hide_its_harm(world: World, fleet: Fleet) -> None:
    live(world, fleet, 2, d1=0.0)
    fleet.label("d1", right=400, wrong=4)
    live(world, fleet, 4, d1=1.5)
    fleet.label("d1", right=20, wrong=20)
    world.service.evaluate(fleet.now)
    view = world.service.accuracy(MODEL, fleet.now)["packages"][OLD]
    assert (view["fleet"]["labels"], view["harmed"]) == (40, True)


def test_the_label_budget_of_a_day_is_never_exceeded(world: World, fleet: Fleet) -> None:
    live(world, fleet, 4, d1=1.5, d2=1.5)
    assert world.policies == [20.0]
    fleet.label("d1", right=190, wrong=0)
    live(world, fleet, 1, d1=1.5, d2=1.5)
    assert world.policies == [20.0, 5.0], "ten are left for two devices"
    fleet.label("d1", right=11, wrong=0)
    live(world, fleet, 1, d1=1.5, d2=1.5)
    assert world.policies == [20.0, 5.0, 0.0]
    budget = world.service.accuracy(MODEL, fleet.now)["budget"]
    assert budget["labels_today"] == 201
    assert budget["reason"] == "limited: 201 of 200 labels of today are used"
    fleet.now += 86_400_000
    live(world, fleet, 4, d1=1.5, d2=1.5)
    assert world.policies[-1] == 20.0, "a new day"


def test_a_sampling_that_could_not_be_set_is_set_by_the_next_evaluation(db: Database, fleet: Fleet) -> None:
    tries: list[float] = []

    def set_sampling(model: str, policy: SamplingPolicy) -> None:
        tries.append(policy.labels_per_minute)
        if len(tries) == 1:
            raise OSError("broker gone")

    service = MonitoringService(db, reference, set_sampling=set_sampling, settings=SETTINGS)
    for _ in range(4):
        fleet.minute(d1=1.5)
    with pytest.raises(OSError, match="broker gone"):
        service.evaluate(fleet.now)
    service.evaluate(fleet.now)
    service.evaluate(fleet.now)
    assert tries == [20.0, 20.0]


def test_around_a_swap_the_package_that_took_over_counts_as_serving(fleet: Fleet, db: Database) -> None:
    def serves() -> str:
        with db.read() as connection:
            found: str = connection.execute(sa.select(serving.c.package)).scalar_one()
            return found

    fleet.metrics("d1", OLD)
    fleet.metrics("d1", OLD, NEW)
    assert serves() == NEW
    fleet.now -= 30_000
    fleet.metrics("d1", OLD)
    assert serves() == NEW, "an older window that came late changes nothing"
    fleet.now += 90_000
    fleet.metrics("d1", NEW, OLD)
    assert serves() == OLD, "rolled back"


def test_metrics_are_summed_per_device_with_latency_quantiles(world: World, fleet: Fleet) -> None:
    live(world, fleet, 3, d1=0.0)
    fleet.metrics("d1", OLD, failed=2)
    (device,) = world.service.metrics(MODEL, since_ms=START)
    assert (device["requests"], device["failed"], device["refused"]) == (400, 2, 4)
    assert 0.25 < device["p50_ms"] < device["p99_ms"] < 0.6
    assert device["machine"]["cpu_percent"] == 12.5
    assert device["machine"]["temperature_c"] is None, "JSON has no NaN"


def test_accuracy_over_time_comes_from_labels_and_without_them(world: World, fleet: Fleet) -> None:
    live(world, fleet, 2, d1=0.0, d2=0.0)
    fleet.label("d1", right=9, wrong=1)
    fleet.label("d2", right=5, wrong=5)
    view = world.service.accuracy(MODEL, fleet.now, bucket_s=60)
    series = {point["device"]: point for point in view["labels"]}
    assert (series["d1"]["value"], series["d2"]["value"], series[""]["value"]) == (0.9, 0.5, pytest.approx(0.7))
    assert series[""]["low"] < 0.7 < series[""]["high"]
    estimates = {point["device"]: point["value"] for point in view["estimates"]}
    assert estimates["d1"] == pytest.approx(0.95, abs=0.03)
    assert estimates[""] == pytest.approx(np.mean([estimates["d1"], estimates["d2"]]))


@pytest.mark.real_parts("initdb", "postgres")
def test_the_same_holds_on_postgresql(program: Callable[[str], Path]) -> None:
    with postgres(program("initdb"), program("postgres")) as url:
        db = Database(url)
        metadata.create_all(db.engine)
        world, fleet = World(db), Fleet(db)
        live(world, fleet, 4, d1=1.5, d2=1.5, d3=0.0)
        fleet.label("d1", right=20, wrong=20)
        world.service.evaluate(fleet.now)
        assert verdicts(world, fleet) == {"d1": "drifted", "d2": "drifted", "d3": "none"}
        assert open_alerts(world) == {("drift", ""), ("drift", "d1"), ("drift", "d2"), ("harm", "")}
        assert (world.policies, len(world.runs)) == ([20.0], 1)
        view = world.service.accuracy(MODEL, fleet.now)
        assert (view["packages"][OLD]["harmed"], view["budget"]["labels_today"]) == (True, 40)
        assert [row["requests"] for row in world.service.metrics(MODEL, since_ms=START)] == [400, 400, 400]
        world.service.prune(fleet.now + 91 * 86_400_000)
        db.close()


def test_one_model_whose_package_cannot_be_read_does_not_stop_the_others(db: Database, fleet: Fleet) -> None:
    def base_sampling(_model: str) -> SamplingPolicy:
        raise PackageError("no manifest")

    service = World(db, base_sampling=base_sampling).service
    for _ in range(4):
        fleet.minute(d1=1.5)
    assert service.evaluate(fleet.now)
    assert service.alerts(MODEL, only_open=True), "what it could do, it did"


def test_old_rows_are_pruned_but_open_alerts_stay(db: Database, fleet: Fleet) -> None:
    world = World(db)
    live(world, fleet, 4, d1=1.5, d2=1.5)
    world.service.prune(fleet.now + 91 * 86_400_000)
    assert world.service.drift(MODEL, fleet.now)["history"] == []
    assert ("drift", "") in open_alerts(world)
