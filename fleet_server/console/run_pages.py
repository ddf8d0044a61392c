"""The pages of runs: the queue beside the schedules, and one run with its graph, its metrics and its log."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.contract.runs import RunState
from fleet_server.clock import Clock, now_ms
from fleet_server.console import present
from fleet_server.console.badges import Badge
from fleet_server.console.views import RunView
from fleet_server.schedules.graph import Step, in_order
from fleet_server.schedules.schedule_service import ScheduleService
from fleet_server.schedules.service import RunService
from fleet_server.schedules.slots import rfc3339

_RUNS_SHOWN, _MOST_LOG = 100, 32 << 10
_UNDER_WAY = {RunState.BLOCKED.value, RunState.QUEUED.value, RunState.RUNNING.value}
_CATCH_UP = {"skip": "passed over", "latest": "the newest is caught up", "all": "all are caught up"}
# The drawing that a metric's line is scaled to.
CURVE_WIDTH, CURVE_HEIGHT = 240.0, 48.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRow:
    """One schedule: its steps with what they need, and its next slot."""

    name: str
    model: str
    when: str
    catch_up: str
    enabled: bool
    steps: tuple[tuple[str, str], ...]
    next_ms: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """One step of the graph that a run belongs to; ``here``: it is the run that is shown."""

    id: str
    name: str
    needs: str
    state: Badge
    here: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One metric over time: its newest, lowest and highest values, and the points of a line, scaled to the drawing."""

    name: str
    newest: float
    lowest: float
    highest: float
    points: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """One run at one moment; ``log``: its end, ``log_cut``: whether there was more before."""

    fleet: str
    now_ms: int
    run: RunView
    title: str
    under_way: bool
    started_ms: int | None
    ended_ms: int | None
    attempt: int
    worker: str
    facts: Sequence[tuple[str, str]]
    graph: Sequence[StepView]
    curves: Sequence[Curve]
    log: str
    log_cut: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunsPage:
    """The schedules, what waits or is under way, and what has ended."""

    fleet: str
    now_ms: int
    schedules: Sequence[ScheduleRow]
    queue: Sequence[RunView]
    ended: Sequence[RunView]


class RunPages:
    """Reads the pages of runs."""

    def __init__(self, runs: RunService, schedules: ScheduleService, *, fleet: str, clock: Clock = now_ms) -> None:
        self._runs, self._schedules, self._fleet, self._clock = runs, schedules, fleet, clock

    def list(self) -> RunsPage:
        """The page of all."""
        return RunsPage(
            fleet=self._fleet,
            now_ms=self._clock(),
            schedules=[_schedule_row(one) for one in self._schedules.list()],
            queue=[present.run_view(run) for run in self._runs.queue(limit=_RUNS_SHOWN)],
            ended=[present.run_view(run) for run in self._runs.list(limit=_RUNS_SHOWN, ended=True)],
        )

    def one(self, run_id: str) -> RunPage:
        """The page of one run.

        Raises:
            NotFound: There is none.
        """
        run = self._runs.get(run_id)
        log = self._runs.log(run_id)["text"]
        return RunPage(
            fleet=self._fleet,
            now_ms=self._clock(),
            run=present.run_view(run),
            title=f"{run['model']} {run['step'] or run['kind']}",
            under_way=run["state"] in _UNDER_WAY,
            started_ms=run["started_at_ms"],
            ended_ms=run["ended_at_ms"],
            attempt=run["attempts"],
            worker=run["worker"],
            facts=_facts(run),
            graph=_graph(run) if len(run["graph"]) > 1 else (),
            curves=curves(self._runs.metrics(run_id)),
            log=log[-_MOST_LOG:],
            log_cut=len(log) > _MOST_LOG,
        )


def curves(points: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """A line for each metric that was measured, by name. Pure."""
    found = []
    for name in sorted({name for point in points for name in point["metrics"]}):
        own = [(point["at_ms"], float(point["metrics"][name])) for point in points if name in point["metrics"]]
        values = [value for _, value in own]
        low, high, begin, end = min(values), max(values), own[0][0], own[-1][0]
        drawn = [
            f"{(at - begin) / max(1, end - begin) * CURVE_WIDTH:.1f},"
            f"{(1 - (value - low) / ((high - low) or 1)) * (CURVE_HEIGHT - 4) + 2:.1f}"
            for at, value in own
        ]
        found.append(Curve(name=name, newest=values[-1], lowest=low, highest=high, points=" ".join(drawn)))
    return found


def _schedule_row(one: Mapping[str, Any]) -> ScheduleRow:
    when = {
        "cron": f"{one['expression']} {one['timezone']}",
        "interval": f"every {one['expression']} s",
        "labels": f"every {one['expression']} new labels",
    }
    return ScheduleRow(
        name=one["name"],
        model=one["model"],
        when=f"makes no runs: {one['wrong']}" if one["wrong"] else when.get(one["kind"], "by hand"),
        catch_up=_CATCH_UP[one["catch_up"]] if one["next_ms"] else "",
        enabled=one["enabled"],
        steps=tuple((step["name"] or step["kind"], ", ".join(step["needs"])) for step in one["steps"]),
        next_ms=one["next_ms"],
    )


def _graph(run: Mapping[str, Any]) -> list[StepView]:
    there = {step["step"] for step in run["graph"]}
    steps = [Step(name=step["step"], needs=tuple(there & set(step["needs"]))) for step in run["graph"]]
    order = in_order(run["id"], steps)
    return [
        StepView(
            id=step["id"],
            name=step["step"] or step["kind"],
            needs=", ".join(step["needs"]),
            state=present.run_badge(RunState(step["state"])),
            here=step["id"] == run["id"],
        )
        for step in sorted(run["graph"], key=lambda step: order.index(step["step"]))
    ]


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    asks = [f"{run[name]:g} {name}" for name in ("cpus", "gpus") if run[name]]
    champion = f"{run['champion_version']} ({run['champion'][:8]})" if run["champion"] else ""
    versions = [
        f"{name} {run[f'{name}_version']}" for name in ("samples", "labels") if run[f"{name}_version"] is not None
    ]
    told = {
        "Kind": run["kind"],
        "Schedule": run["schedule"] or "",
        "Stands for": rfc3339(run["logical_time_ms"]),
        "Asked for by": run["trigger"],
        "Made from lake": ", ".join(versions),
        "To beat": champion,
        "Inputs": (run["inputs"] or "")[:16],
        "Released": f"{run['version']} ({run['package'][:8]})" if run["package"] else "",
        "Priority": str(run["priority"]) if run["priority"] else "",
        "Takes": ", ".join(asks),
        "Retries used": f"{run['failures']} of {run['retries']}" if run["retries"] else "",
        "Timeout": f"{run['timeout_s']:g} s" if run["timeout_s"] else "",
    }
    return [(name, value) for name, value in told.items() if value]
