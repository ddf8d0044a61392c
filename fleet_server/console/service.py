"""Gathers what the console shows from the other features; it reads and never writes."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge_agent.contract.runs import RunState
from fleet_server.clock import Clock, now_ms
from fleet_server.console import accuracy, boards, present, queries
from fleet_server.console.approvals import ApprovalView, approval_view
from fleet_server.console.queries import Alert, Readings
from fleet_server.console.recent_labels import measured, recent
from fleet_server.console.views import Console, DevicePage, DeviceRow, EventView, ModelView, Summary
from fleet_server.database import Database
from fleet_server.devices.records import DeviceRecord
from fleet_server.devices.service import DeviceService
from fleet_server.models.service import ModelService
from fleet_server.monitoring.machines import machine_records
from fleet_server.monitoring.settings import DriftRule
from fleet_server.rollouts.rollout import State
from fleet_server.rollouts.service import RolloutService
from fleet_server.rollouts.store import RolloutRecord
from fleet_server.schedules.service import RunService
from fleet_server.updates.approvals import Approval
from fleet_server.updates.kept_proposals import WAITING

MOST_ROWS = 200
_ROLLOUTS_SHOWN, _RUNS_SHOWN, _EVENTS_SHOWN, _HISTORY = 4, 5, 60, 50
_APPROVALS_SHOWN = 6
_Rows = Sequence[Mapping[str, Any]]
_FRESH_MS = 1_000
# What waits, waits for a person; each look at it verifies signatures over all that is released of the model.
_APPROVALS_FRESH_MS = 5_000
_DRIFT_RULE = DriftRule()


class ConsoleService:
    """Reads one :class:`Console` after another.

    Several viewers of the same page within a second share one reading, so that watching costs the server little.

    Args:
        approvals: Gives the releases that wait for signatures, and those that were refused.
        drift_rule: The one that monitoring judges by: where the drift panel draws its thresholds.
    """

    def __init__(
        self,
        db: Database,
        *,
        fleet: str,
        devices: DeviceService,
        models: ModelService,
        rollouts: RolloutService,
        runs: RunService,
        approvals: Callable[[], Sequence[Approval]],
        drift_rule: DriftRule = _DRIFT_RULE,
        clock: Clock = now_ms,
    ) -> None:
        self._approvals = approvals
        self._seen_waiting: tuple[int, list[ApprovalView]] = (0, [])
        self._rule = drift_rule
        self._db, self._fleet, self._clock = db, fleet, clock
        self._devices, self._models, self._rollouts, self._runs = devices, models, rollouts, runs
        self._lock = threading.Lock()
        self._latest: dict[tuple[str, str], Console] = {}

    def read(self, model: str = "", span: str = "") -> Console:
        """The console now.

        Args:
            model: Which one chart and drift are about; the first there is where it is empty or unknown.
            span: A key of :data:`fleet_server.console.accuracy.SPANS_MS`; ``auto`` where it is none.
        """
        now = self._clock()
        with self._lock:
            found = self._latest.get((model, span))
            if found is None or not 0 <= now - found.summary.now_ms < _FRESH_MS:
                # Others wait for this one reading; what nobody asks for any more is forgotten.
                self._latest = {
                    key: one for key, one in self._latest.items() if 0 <= now - one.summary.now_ms < _FRESH_MS
                }
                found = self._latest[model, span] = self._read(
                    model, span if span in accuracy.SPANS_MS else "auto", now
                )
        return found

    def device(self, name: str) -> DevicePage:
        """One device's page now.

        Raises:
            NotFound: There is none of that name.
        """
        record = self._devices.get(name)
        with self._db.read() as connection:
            machine = next(iter(machine_records(connection, [name])), None)
        return DevicePage(
            fleet=self._fleet,
            now_ms=self._clock(),
            device=record.name,
            status=present.status_badge(record),
            online=record.online and not record.revoked,
            last_seen_ms=record.last_seen_ms,
            enrolled_at_ms=record.enrolled_at_ms,
            agent_version=record.agent_version or "",
            api=record.api or "",
            behind=max(0, record.desired_revision - record.reported_revision),
            board=boards.board_view(machine),
            board_at_ms=machine.at_ms if machine is not None else None,
            gpus=boards.gpu_views(machine),
            facts=boards.machine_facts(record.hardware, machine),
            models=[_model_view(record, model) for model in sorted({*record.desired, *record.reported})],
            events=[present.device_event(one) for one in self._devices.events(name, limit=_EVENTS_SHOWN)],
        )

    def _read(self, model: str, span: str, now: int) -> Console:
        devices = self._devices.list()
        rollouts = self._rollouts.list(limit=_ROLLOUTS_SHOWN)
        runs = self._runs.list(limit=_HISTORY)
        names = self._model_names(devices, runs)
        chosen = model if model in names else next(iter(names), "")
        since = now - accuracy.SPANS_MS[span]
        with self._db.read() as connection:
            readings = queries.readings(connection, chosen, rule=self._rule, now_ms=now, since_ms=since)
            history = queries.rollout_history(connection, _HISTORY)
        rows = _device_rows(devices, readings)
        waiting = self._waiting(now)
        return Console(
            summary=self._summary(devices, rollouts, readings.alerts, now),
            model=chosen,
            models=names,
            span=span,
            spans=tuple(accuracy.SPANS_MS),
            devices=rows[:MOST_ROWS],
            hidden_devices=max(0, len(rows) - MOST_ROWS),
            chart=accuracy.draw(
                readings.labels,
                readings.estimates,
                present.marks(history, runs, readings.alerts, chosen),
                span=span,
                now_ms=now,
                promised=self._promised(chosen),
                serving={one.name: one.reported[chosen].package for one in devices if chosen in one.reported},
            ),
            drift=readings.drift,
            rollouts=[present.rollout_view(one) for one in rollouts],
            runs=[present.run_view(one) for one in runs[:_RUNS_SHOWN]],
            events=self._events(history, runs, readings.alerts),
            approvals=waiting[:_APPROVALS_SHOWN],
            hidden_approvals=max(0, len(waiting) - _APPROVALS_SHOWN),
        )

    def _waiting(self, now: int) -> list[ApprovalView]:
        at_ms, found = self._seen_waiting
        if not 0 <= now - at_ms < _APPROVALS_FRESH_MS:
            found = [approval_view(one) for one in self._approvals() if one.state == WAITING]
            self._seen_waiting = (now, found)
        return found

    def _model_names(self, devices: Sequence[DeviceRecord], runs: _Rows) -> list[str]:
        with self._db.read() as connection:
            names = set(self._models.names(connection))
        names |= {model for device in devices for model in device.reported}
        return sorted(names | {run["model"] for run in runs})

    def _summary(
        self,
        devices: Sequence[DeviceRecord],
        rollouts: Sequence[RolloutRecord],
        alerts: Sequence[Alert],
        now: int,
    ) -> Summary:
        living = [device for device in devices if not device.revoked]
        active = [one for one in rollouts if one.state in {State.RUNNING, State.PAUSED}]
        queue = self._runs.queue(limit=_RUNS_SHOWN)
        under_way = [run for run in queue if run["state"] != RunState.BLOCKED.value]
        return Summary(
            fleet=self._fleet,
            now_ms=now,
            online=sum(device.online for device in living),
            offline=sum(not device.online for device in living),
            alerts=sum(alert.open for alert in alerts),
            alert_kinds=present.alert_line(alerts),
            rollout="; ".join(present.rollout_line(one) for one in active),
            run="; ".join(present.run_line(run) for run in under_way),
        )

    def _promised(self, model: str) -> float | None:
        """The accuracy that the champion showed on its reference data."""
        champion = self._models.champion(model) if model else None
        if champion is None:
            return None
        with self._db.read() as connection:
            value = self._models.package(connection, champion[0]).evaluation.get("accuracy")
        return float(value) if isinstance(value, int | float) else None

    def _events(self, rollouts: _Rows, runs: _Rows, alerts: Sequence[Alert]) -> list[EventView]:
        found = [present.device_event(one) for one in self._devices.events(limit=_EVENTS_SHOWN)]
        for rollout in rollouts:
            found += present.rollout_events(rollout)
        for run in runs:
            found += present.run_events(run)
        for alert in alerts:
            found += present.alert_events(alert)
        return sorted(found, key=lambda one: (-one.at_ms, -one.order, one.key))[:_EVENTS_SHOWN]


def _device_rows(devices: Sequence[DeviceRecord], readings: Readings) -> list[DeviceRow]:
    rows = []
    for device in devices:
        board = boards.board_view(readings.machines.get(device.name)) if device.online else None  # else an old one
        base = DeviceRow(
            device=device.name,
            status=present.status_badge(device),
            last_seen_ms=device.last_seen_ms,
            board=board if board is not None and board.tells else None,
        )
        rows += [_model_row(base, device, model, readings) for model in sorted(device.reported)] or [base]
    return rows


def _model_row(base: DeviceRow, device: DeviceRecord, model: str, readings: Readings) -> DeviceRow:
    reported, key = device.reported[model], (device.name, model)
    speed = readings.speeds.get(key) if device.online else None  # else it would be an old one
    return dataclasses.replace(
        base,
        model=model,
        version=reported.version,
        package=reported.package,
        step=present.step_badge(reported),
        target=reported.target if reported.target != reported.package else "",
        requests_per_s=speed.requests_per_s if speed else None,
        p99_ms=speed.p99_ms if speed else None,
        drift=readings.verdicts.get(key),
        accuracy=measured([recent(readings.recent_labels.get((device.name, reported.package), ()))]),
        estimate=readings.newest_estimates.get(key),
        labels_used=readings.labels_used.get(key, 0),
        runtime=boards.runtime_view(reported.runtime),
    )


def _model_view(device: DeviceRecord, model: str) -> ModelView:
    reported, desired = device.reported.get(model), device.desired.get(model)
    serves = "" if reported is None else reported.package
    return ModelView(
        model=model,
        version="" if reported is None else reported.version,
        package=serves,
        step=None if reported is None else present.step_badge(reported),
        target=reported.target if reported is not None and reported.target != serves else "",
        asked_for=desired.version if desired is not None and desired.package != serves else "",
        requests=0 if reported is None else reported.requests,
        failed=0 if reported is None else reported.failed,
        runtime=None if reported is None else boards.runtime_view(reported.runtime),
    )
