"""From the records of the other features to what the page shows. Pure."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.contract.messages import EventKind, ReportedModel, UpdateStep
from edge_agent.contract.runs import RunKind, RunState
from fleet_server.console.badges import Badge, Tone
from fleet_server.console.chart_views import Mark
from fleet_server.console.queries import Alert
from fleet_server.console.views import EventView, RolloutView, RunView, Wave
from fleet_server.devices.records import DeviceRecord, EventRecord
from fleet_server.rollouts.rollout import Member, Progress, State
from fleet_server.rollouts.store import RolloutRecord

_ROLLOUT_TONES = {
    State.DRAFT: Tone.QUIET,
    State.RUNNING: Tone.BUSY,
    State.PAUSED: Tone.WARN,
    State.HALTED: Tone.BAD,
    State.DONE: Tone.GOOD,
}
_PROGRESS_TONES = {
    Progress.WAITING: Tone.QUIET,
    Progress.ASSIGNED: Tone.BUSY,
    Progress.COMMITTED: Tone.GOOD,
    Progress.FAILED: Tone.BAD,
    Progress.SKIPPED: Tone.WARN,
    Progress.REVERTED: Tone.WARN,
}
_RUN_TONES = {
    RunState.QUEUED: Tone.QUIET,
    RunState.RUNNING: Tone.BUSY,
    RunState.RELEASED: Tone.GOOD,
    RunState.REFUSED: Tone.WARN,
    RunState.UNCHANGED: Tone.QUIET,
    RunState.FAILED: Tone.BAD,
    RunState.BLOCKED: Tone.QUIET,
    RunState.DONE: Tone.GOOD,
    RunState.CANCELLED: Tone.WARN,
    RunState.SKIPPED: Tone.WARN,
}
_EVENT_TONES = {
    EventKind.AGENT_STARTED: Tone.QUIET,
    EventKind.UPDATE_STEP: Tone.BUSY,
    EventKind.UPDATE_COMMITTED: Tone.GOOD,
    EventKind.UPDATE_FAILED: Tone.BAD,
    EventKind.ROLLED_BACK: Tone.BAD,
    EventKind.METADATA_REFUSED: Tone.BAD,
    EventKind.OUTBOX_DROPPED: Tone.WARN,
    EventKind.STORAGE: Tone.WARN,
    EventKind.RUNTIME_CHANGED: Tone.QUIET,
}


def status_badge(device: DeviceRecord) -> Badge:
    """Whether a device is there."""
    if device.revoked:
        return Badge(
            text="revoked", tone=Tone.QUIET, why="what it sends is ignored; a claim bound to its name lets it back"
        )
    if device.online:
        return Badge(text="online", tone=Tone.GOOD)
    if device.last_seen_ms is None:
        return Badge(text="enrolled", tone=Tone.QUIET, why="it has not connected yet: start its agent")
    return Badge(text="offline", tone=Tone.BAD, why="its connection to the broker has ended")


def step_badge(model: ReportedModel) -> Badge:
    """Where a device's latest update is, or that the next one waits for the device's own window."""
    if model.waits_until_ms is not None and model.step is not UpdateStep.FAILED:
        return Badge(text=f"{model.step.value}, next waits", tone=Tone.BUSY, why=model.reason)
    tone = {UpdateStep.COMMITTED: Tone.GOOD, UpdateStep.FAILED: Tone.BAD}.get(model.step, Tone.BUSY)
    return Badge(text=model.step.value, tone=tone, why=model.reason)


def rollout_view(record: RolloutRecord) -> RolloutView:
    """A rollout with its waves; one that found no devices has none to show."""
    empty = record.state is State.DONE and not record.devices
    badge = Badge(
        text="done at once: no devices yet" if empty else record.state.value, tone=_ROLLOUT_TONES[record.state]
    )
    return RolloutView(
        id=record.id,
        model=record.model,
        version=record.version,
        package=record.package,
        state=badge,
        reason=record.reason,
        note=record.note,
        created_at_ms=record.created_at_ms,
        waves=() if empty else tuple(_wave(record, index) for index in range(len(record.waves))),
    )


def rollout_line(record: RolloutRecord) -> str:
    """A rollout in a few words, for the header."""
    done = record.counts.get(Progress.COMMITTED.value, 0)
    wave = f"wave {record.wave + 1} of {len(record.waves)}"
    text = f"{record.model} {record.version}: {wave}, {done}/{len(record.devices)} devices"
    return text if record.state is State.RUNNING else f"{text} ({record.state.value})"


def run_view(run: Mapping[str, Any]) -> RunView:
    """A training run; ``run`` is a row of its table."""
    state = RunState(run["state"])
    active = state in {RunState.BLOCKED, RunState.QUEUED, RunState.RUNNING}
    stage = [run["stage"], run["message"]] if run["started_at_ms"] else [run["message"]]
    if state is RunState.BLOCKED:
        stage = [f"waits for {', '.join(run['needs'])}"]
    current = run["evaluation"].get("current") or {}
    return RunView(
        id=run["id"],
        model=run["model"],
        state=run_badge(state),
        trigger=run["trigger"],
        reason=run["reason"],
        stage=": ".join(part for part in stage if part),
        fraction=run["fraction"] if active else None,
        champion=_share(current.get("champion")),
        challenger=_share(current.get("challenger")),
        version=run["version"] or "",
        reasons=tuple(str(reason) for reason in run["reasons"]),
        at_ms=run["ended_at_ms"] or run["started_at_ms"] or run["created_at_ms"],
        step=run["step"] or ("" if run["kind"] == RunKind.TRAIN.value else run["kind"]),
        schedule=run["schedule"] or "",
    )


def run_badge(state: RunState) -> Badge:
    """Where a run is."""
    return Badge(text=state.value, tone=_RUN_TONES[state])


def run_line(run: Mapping[str, Any]) -> str:
    """A run under way in a few words, for the header."""
    if run["state"] == RunState.QUEUED.value:
        return f"{run['model']}: waits for a worker"
    return f"{run['model']}: {run['stage'] or 'starting'}, {run['fraction']:.0%}"


def device_event(event: EventRecord) -> EventView:
    """An event that a device sent, at the time when it came."""
    try:
        tone = _EVENT_TONES[EventKind(event.kind)]
    except ValueError:  # of a newer agent
        tone = Tone.QUIET
    words = [event.model, event.package[:8], str(event.detail.get("step", "")), event.reason]
    return EventView(
        key=f"d{event.id}",
        at_ms=event.received_at_ms,
        order=event.id,
        tone=tone,
        kind=event.kind.replace("-", " "),
        where=event.device,
        text=" ".join(word for word in words if word),
    )


def run_events(run: Mapping[str, Any]) -> list[EventView]:
    """When a run was asked for, and how it ended."""
    what = {RunKind.TRAIN.value: "training"}.get(run["kind"], run["kind"])
    found = [
        _event(f"rb{run['id']}", run["created_at_ms"], Tone.BUSY, f"{what} asked for", run["model"], run["reason"])
    ]
    if run["ended_at_ms"] is not None:
        state = RunState(run["state"])
        text = "; ".join(str(reason) for reason in run["reasons"])
        found.append(
            _event(
                f"re{run['id']}",
                run["ended_at_ms"],
                _RUN_TONES[state],
                f"{what} {state.value}",
                run["model"],
                text,
                order=1,
            )
        )
    return found


def rollout_events(row: Mapping[str, Any]) -> list[EventView]:
    """When a rollout was created, and how it ended; ``row`` is one of its table."""
    what, model, state = f"{row['version']} ({row['package'][:8]})", row["model"], State(row["state"])
    text = f"{what} {row['reason']}".strip()
    found = [_event(f"ob{row['id']}", row["created_at_ms"], Tone.BUSY, "rollout created", model, text)]
    if row["ended_at_ms"] is not None:
        tone = _ROLLOUT_TONES[state]
        text = f"{what} {row['note']}".strip()
        found.append(_event(f"oe{row['id']}", row["ended_at_ms"], tone, f"rollout {state.value}", model, text, order=1))
    return found


def alert_line(alerts: Sequence[Alert]) -> str:
    """The open alerts by kind, for the header: ``2 drift, 1 harm``."""
    counts = collections.Counter(alert.kind for alert in alerts if alert.open)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def alert_events(alert: Alert) -> list[EventView]:
    """When an alert was opened, and when closed."""
    where = alert.device or f"fleet, {alert.model}"
    found = [_event(f"ao{alert.id}", alert.opened_at_ms, Tone.BAD, f"{alert.kind} alert", where, alert.reason)]
    if alert.closed_at_ms is not None:
        closed = f"{alert.kind} over"
        found.append(
            _event(f"ac{alert.id}", alert.closed_at_ms, Tone.GOOD, closed, where, alert.closed_reason, order=1)
        )
    return found


def marks(
    rollouts: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], alerts: Sequence[Alert], model: str
) -> list[Mark]:
    """The chart's marks for ``model``."""
    found = [
        Mark(at_ms=one["created_at_ms"], kind="rollout", text=f"rollout of {one['version']}")
        for one in rollouts
        if one["model"] == model
    ]
    found += [
        Mark(at_ms=one["created_at_ms"], kind="retraining", text=str(one["reason"]))
        for one in runs
        if one["model"] == model
    ]
    found += [Mark(at_ms=one.opened_at_ms, kind=one.kind, text=one.reason) for one in alerts if one.model == model]
    return found


def _wave(record: RolloutRecord, index: int) -> Wave:
    devices = [member for member in record.devices if member.wave == index]
    if index < record.wave or record.state is State.DONE:
        state = Badge(text="done", tone=Tone.GOOD)
    elif index > record.wave:
        state = Badge(text="to come" if record.state is not State.HALTED else "not begun", tone=Tone.QUIET)
    else:
        state = Badge(
            text="now" if record.state is State.RUNNING else record.state.value, tone=_ROLLOUT_TONES[record.state]
        )
    return Wave(
        number=index + 1,
        state=state,
        goal=_goal(record.waves[index]),
        devices=tuple((member.device, _member_badge(member)) for member in devices),
    )


def _member_badge(member: Member) -> Badge:
    return Badge(text=member.progress.value, tone=_PROGRESS_TONES[member.progress], why=member.reason)


def _goal(wave: float) -> str:
    if isinstance(wave, int):
        return "1 device" if wave == 1 else f"{wave} devices"
    return "whole fleet" if wave == 1.0 else f"{wave:.0%}"


def _event(key: str, at_ms: int, tone: Tone, kind: str, *about: str, order: int = 0) -> EventView:
    return EventView(key=key, at_ms=at_ms, order=order, tone=tone, kind=kind, where=about[0], text=about[1])


def _share(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
