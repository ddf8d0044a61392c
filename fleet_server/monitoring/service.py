"""Evaluates what the devices report: drift, harm, and what follows: alerts, label budgets, requests for runs."""

from __future__ import annotations

import datetime as dt
import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa

from edge_agent.contract.errors import PackageError, ShoalError
from edge_agent.contract.profile import ReferenceProfile
from edge_agent.contract.sampling import SamplingPolicy
from fleet_server.database import Database
from fleet_server.monitoring import alerts, harm, intake, queries
from fleet_server.monitoring.budget import policy_for, unconfirmed
from fleet_server.monitoring.drift import FleetVerdict, Verdict, judge_fleet
from fleet_server.monitoring.harm import HarmVerdict
from fleet_server.monitoring.machines import RECENT_S, MachineRecord, machine_records
from fleet_server.monitoring.settings import MonitoringSettings
from fleet_server.monitoring.tables import alerts as alert_rows
from fleet_server.monitoring.tables import drift as drift_rows
from fleet_server.monitoring.tables import label_budgets, machine_windows, metrics, profile_windows, serving
from fleet_server.monitoring.windows import judge_windows
from fleet_server.upsert import upsert

_log = logging.getLogger(__name__)

Reference = Callable[[str], ReferenceProfile]
SetSampling = Callable[[str, SamplingPolicy], None]
RequestRun = Callable[[str, str, str], Any]


class MonitoringService:
    """Monitoring of all models of a fleet.

    Args:
        reference: The reference profile of a package digest; raises PackageError where it is not known (yet). Its
            answers are remembered.
        set_sampling: Told ``(model, policy)`` when a model's devices should sample otherwise.
        request_run: Told ``(model, "harm", reason)`` at every evaluation while labels show harm; it decides whether one
            is made (one active run per model, cool-down).
        base_sampling: A model's own sampling policy, as its package states it.
        hold: Why no run should be requested for a model now (a run or a rollout is under way), or None; meanwhile no
            more labels are asked for than the package says.
        parent: Digest of the package that a package was made to replace, None for a first one; raises PackageError
            where it is not known. After an update labels are asked for, to confirm it.
    """

    def __init__(
        self,
        db: Database,
        reference: Reference,
        *,
        set_sampling: SetSampling | None = None,
        request_run: RequestRun | None = None,
        base_sampling: Callable[[str], SamplingPolicy] | None = None,
        hold: Callable[[str], str | None] | None = None,
        parent: Callable[[str], str | None] | None = None,
        settings: MonitoringSettings | None = None,
    ) -> None:
        self._db = db
        self._reference: Reference = functools.lru_cache(maxsize=64)(reference)
        self._set_sampling, self._request_run = set_sampling, request_run
        self._base_sampling = base_sampling or (lambda _model: SamplingPolicy())
        self._hold = hold or (lambda _model: None)
        self._parent = parent or (lambda _package: None)
        self._settings = settings or MonitoringSettings()
        self._evaluating = threading.Lock()

    on_metrics = staticmethod(intake.on_metrics)
    on_profile = staticmethod(intake.on_profile)

    def evaluate(self, now_ms: int) -> list[dict[str, Any]]:
        """Judge what has come in; returns the new rows of ``drift``. Callbacks are called after the commits.

        A callback that fails leaves its wish standing: the next evaluation asks again. Of the errors of ours it is
        logged, so that one model does not stop the others; any other error is the caller's to handle.
        """
        with self._evaluating:
            written = judge_windows(self._db, self._reference, self._settings.drift, now_ms)
            with self._db.read() as connection:
                models = (
                    connection.execute(sa.select(serving.c.model).distinct().order_by(serving.c.model)).scalars().all()
                )
            for model in models:
                try:
                    self._evaluate_model(model, now_ms)
                except ShoalError:
                    _log.exception("%s could not be evaluated in full; the next evaluation tries again", model)
            return written

    def _evaluate_model(self, model: str, now_ms: int) -> None:
        with self._db.write() as connection:
            fleet = self._settle_drift(connection, model, now_ms)
            harms = self._settle_harm(connection, model, now_ms)
            harmed = [verdict.reason for verdict in harms.values() if verdict.harmed]
            wrong = "; ".join(([fleet.reason] if fleet.alert else []) + harmed)
            served = queries.serving_since(connection, model)
            used = queries.labels_since(connection, model, _midnight(now_ms))
            current = queries.label_budget(connection, model)
        held = self._hold(model)
        if harmed and self._request_run is not None:
            if held is None:
                self._request_run(model, alerts.HARM, "; ".join(harmed))
                held = self._hold(model)  # labels that come from now on come too late for that run
            else:
                _log.debug("%s: no run is requested: %s", model, held)
        cause = wrong or self._unconfirmed(served, harms, now_ms)
        devices = sum(map(len, served.values()))
        self._budget(model, current, cause, held, used=used, devices=devices, now_ms=now_ms)

    # --- drift

    def _settle_drift(self, connection: sa.Connection, model: str, now_ms: int) -> FleetVerdict:
        fresh = self._fresh(queries.latest_drift(connection, model), now_ms)
        verdict = self._judge_fleet(fresh)
        drifted = {row["device"]: row for row in fresh if row["verdict"] == Verdict.DRIFTED}
        quiet = alerts.open_devices(connection, model, alerts.DRIFT) - drifted.keys()
        for device in sorted(drifted.keys() | quiet):
            row = drifted.get(device)
            reason = "the data is as the serving package expects it" if row is None else queries.drift_in_words(row)
            alerts.settle(
                connection,
                model=model,
                kind=alerts.DRIFT,
                device=device,
                active=row is not None,
                reason=reason,
                now_ms=now_ms,
            )
        alerts.settle(
            connection,
            model=model,
            kind=alerts.DRIFT,
            device=alerts.FLEET,
            active=verdict.alert,
            reason=verdict.reason,
            now_ms=now_ms,
        )
        return verdict

    def _fresh(self, latest: list[dict[str, Any]], now_ms: int) -> list[dict[str, Any]]:
        oldest_ms = now_ms - self._settings.drift.stale_after_s * 1000
        return [row for row in latest if row["until_ms"] >= oldest_ms]

    def _judge_fleet(self, fresh: list[dict[str, Any]]) -> FleetVerdict:
        return judge_fleet({row["device"]: Verdict(row["verdict"]) for row in fresh}, self._settings.drift)

    # --- harm

    def _settle_harm(self, connection: sa.Connection, model: str, now_ms: int) -> dict[str, HarmVerdict]:
        verdicts = self._judge_harm(connection, model, now_ms)
        harmed = [verdict for verdict in verdicts.values() if verdict.harmed]
        said = harmed or list(verdicts.values())
        alerts.settle(
            connection,
            model=model,
            kind=alerts.HARM,
            device=alerts.FLEET,
            active=bool(harmed),
            reason="; ".join(verdict.reason for verdict in said) or "no labels of the serving package",
            now_ms=now_ms,
        )
        return verdicts

    def _judge_harm(self, connection: sa.Connection, model: str, now_ms: int) -> dict[str, HarmVerdict]:
        rule = self._settings.harm
        since_ms = now_ms - round(rule.window_s * 1000)
        by_package = queries.labelled_rows(connection, model, since_ms)
        verdicts = {}
        for package, rows in by_package.items():
            try:
                promised = self._reference(package).accuracy
            except PackageError as error:
                _log.warning("%s: nothing is known of package %s yet: %s", model, package[:12], error)
                continue
            verdicts[package] = harm.judge(rows, reference=promised, rule=rule)
        return verdicts

    # --- label budget

    def _unconfirmed(self, served: dict[str, list[int]], harms: dict[str, HarmVerdict], now_ms: int) -> str:
        """Why labels are wanted though nothing is wrong: a package that replaced another has still to prove itself."""
        for package, since_ms in served.items():
            try:
                if self._parent(package) is None:
                    continue
            except PackageError as error:
                _log.warning("nothing is known of package %s yet: %s", package[:12], error)
                continue
            labels = harms[package].fleet.labels if package in harms else 0
            enough = self._settings.harm.min_labels
            words = unconfirmed(
                package, self._settings.budget, since_ms=since_ms, labels=labels, min_labels=enough, now_ms=now_ms
            )
            if words:
                return words
        return ""

    def _budget(
        self,
        model: str,
        current: dict[str, Any] | None,
        cause: str,
        held: str | None,
        *,
        used: int,
        devices: int,
        now_ms: int,
    ) -> None:
        if self._set_sampling is None:
            return
        base = self._base_sampling(model)
        policy, reason = policy_for(
            base, self._settings.budget, cause=cause, held=held, used_today=used, devices=devices
        )
        if current is None and policy == base:
            return
        wanted = msgspec.to_builtins(policy)
        if current is not None and current["policy"] == wanted:
            if current["reason"] != reason:
                with self._db.write() as connection:
                    upsert(connection, label_budgets, {"model": model}, current | {"reason": reason})
            return
        self._set_sampling(model, policy)
        _log.info("%s: %g labels per device and minute, %s", model, policy.labels_per_minute, reason)
        with self._db.write() as connection:
            upsert(
                connection, label_budgets, {"model": model}, {"policy": wanted, "reason": reason, "since_ms": now_ms}
            )

    # --- reading

    def drift(self, model: str, now_ms: int, *, history: int = 100) -> dict[str, Any]:
        """The fleet's verdict and each device's newest one, with its features; see :mod:`.queries`."""
        with self._db.read() as connection:
            latest = queries.latest_drift(connection, model)
            past = queries.drift_history(connection, model, limit=history)
        verdict = self._judge_fleet(self._fresh(latest, now_ms))
        return {"model": model, "fleet": queries.as_dict(verdict), "devices": latest, "history": past}

    def accuracy(
        self, model: str, now_ms: int, *, bucket_s: float = 60.0, since_ms: int | None = None
    ) -> dict[str, Any]:
        """Accuracy over time, from labels and estimated without, and the harm rule's present view per package."""
        bucket_ms = max(1, round(bucket_s * 1000))
        start = now_ms - 240 * bucket_ms if since_ms is None else since_ms
        with self._db.read() as connection:
            confidence = self._settings.harm.confidence
            series = queries.accuracy_series(
                connection, model, since_ms=start, bucket_ms=bucket_ms, confidence=confidence
            )
            estimates = queries.estimate_series(connection, model, since_ms=start, bucket_ms=bucket_ms)
            verdicts = self._judge_harm(connection, model, now_ms)
            budget = queries.label_budget(connection, model)
            used = queries.labels_since(connection, model, _midnight(now_ms))
        return {
            "model": model,
            "bucket_ms": bucket_ms,
            "labels": series,
            "estimates": estimates,
            "packages": {package: queries.as_dict(verdict) for package, verdict in verdicts.items()},
            "budget": (budget or {}) | {"labels_today": used, "per_day": self._settings.budget.per_day},
        }

    def metrics(self, model: str, *, since_ms: int) -> list[dict[str, Any]]:
        """Per device since a moment: requests, failures, p50 and p99 in milliseconds, its machine's state."""
        with self._db.read() as connection:
            return queries.device_metrics(connection, model, since_ms=since_ms)

    def machines(self, device: str | None = None, *, window_s: float = RECENT_S) -> list[MachineRecord]:
        """The machines' newest states: GPUs, power, throttling; their energy over that long before."""
        with self._db.read() as connection:
            return machine_records(connection, None if device is None else [device], window_s=window_s)

    def alerts(self, model: str | None = None, *, only_open: bool = False, limit: int = 100) -> list[dict[str, Any]]:
        """Alerts, the newest first; ``device`` is empty where the fleet is meant."""
        with self._db.read() as connection:
            return queries.alert_list(connection, model, only_open=only_open, limit=limit)

    def prune(self, now_ms: int) -> None:
        """Delete rows older than the retention; open alerts stay."""
        before = now_ms - round(self._settings.retention_days * 86_400_000)
        with self._db.write() as connection:
            for table in (metrics, machine_windows, profile_windows, drift_rows):
                connection.execute(sa.delete(table).where(table.c.until_ms < before))
            connection.execute(sa.delete(alert_rows).where(alert_rows.c.closed_at_ms < before))


def _midnight(now_ms: int) -> int:
    day = dt.datetime.fromtimestamp(now_ms / 1000, tz=dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return round(day.timestamp() * 1000)
