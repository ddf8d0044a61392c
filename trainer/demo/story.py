"""What happens in the demo, from a fleet that is right to one that is right again."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from rich.console import Console
from rich.status import Status

from edge_agent.contract.lake import LABELS, SAMPLES
from trainer.demo.fleet import MODEL, Fleet
from trainer.demo.processes import DemoFailed
from trainer.demo.report import DeviceReport, Report, judge
from trainer.recipe import load_module

_STEADY_S = 20.0
_MOST_RUNS = 2


class Story:
    """Plays the demo on a fleet and keeps what was measured.

    Args:
        world: The recipe's ``world.py``: how cameras see before and after.
    """

    def __init__(self, fleet: Fleet, recipe: Path, console: Console) -> None:
        self._fleet, self._console = fleet, console
        worlds = load_module(recipe / "world.py").DRIFTED
        self._worlds: Mapping[str, dict[str, float]] = {name: dataclasses.asdict(w) for name, w in worlds.items()}
        self._began = time.monotonic()
        self._status: Status | None = None
        self._swap_began = 0.0
        self._before: dict[str, float] = {}
        self._drifted: dict[str, float] = {}

    def play(self, http_port: int) -> Report:
        """Play all of it."""
        with self._console.status("") as status:
            self._status = status
            self._begin(http_port)
            self._steady()
            self._world_changes()
            self._roll_out(self._learn())
            return self._end()

    def _begin(self, http_port: int) -> None:
        self._doing("making keys, starting server and broker")
        link = self._fleet.start_server(http_port)
        self._say(f"[bold]console: [link={link}]{link}[/link][/bold]")
        self._doing("training the first model (Lightning) on the base digits")
        accuracy = self._fleet.train_first()
        self._fleet.start_worker()
        self._say(
            f"first model trained, exported to ONNX, signed and published; accuracy on its holdout {accuracy:.3f}"
        )
        for number, name in enumerate(self._worlds):
            self._doing(f"{name}: enrolling, installing the signed model")
            self._fleet.start_device(name, number)
        self._say(f"{len(self._worlds)} devices enrolled, each with its agent and its camera")

    def _steady(self) -> None:
        self._doing("the fleet works; reference and live data agree")
        self._fleet.until(self._all_judged, "the first verdict on every device's data", timeout_s=60)
        time.sleep(max(0.0, _STEADY_S - 10.0))
        self._before = self._accuracy("before")
        self._say(f"accuracy on held-out digits: {_shown(self._before)}; drift: none")

    def _world_changes(self) -> None:
        for name, camera in self._fleet.cameras.items():
            camera.tell("world", **self._worlds[name])
        self._say(
            "[yellow]the world changes[/yellow]: contrast, blur, rotation and noise, each camera in its own degree"
        )
        self._drifted = self._accuracy("drifted")
        self._say(f"accuracy on held-out digits: {_shown(self._drifted)} (the server knows none of these labels)")
        self._doing("waiting for drift to be seen, from counts alone")
        labels_before = self._labels_used()
        alert = self._fleet.until(lambda: self._alert("drift"), "a drift alert of the fleet", timeout_s=90)
        self._say(f"[yellow]drift[/yellow], seen with {labels_before} labels: {alert['reason']}")

    def _learn(self) -> str:
        """Wait for a retraining that is released; gives its package. A first one may lack the evidence to be."""
        self._doing("the server asks for a trickle of labels, within its budget")
        refused: set[str] = set()
        while True:
            run = self._fleet.until(
                lambda: self._run_beside(refused), "the harm rule to ask for a retraining", timeout_s=120
            )
            self._say(f"[yellow]harm[/yellow], after {self._labels_used()} labels: {run['reason']}")
            while run["state"] in {"queued", "running"}:
                self._doing(f"retraining: {run.get('stage') or 'waiting for the trainer'} {run.get('message') or ''}")
                time.sleep(0.5)
                run = self._fleet.until(lambda: self._run_beside(refused), "the run", timeout_s=10)
            self._say(f"retraining [bold]{run['state']}[/bold]: {'; '.join(run['reasons'])}")
            if run["state"] == "released":
                return str(run["package"])
            refused.add(run["id"])
            if len(refused) == _MOST_RUNS:
                raise DemoFailed(f"{_MOST_RUNS} retrainings gave no better model")

    def _roll_out(self, package: str) -> None:
        self._doing("rolling out in waves, agents swap under load")
        self._swap_began = time.monotonic()
        rollout = self._fleet.until(lambda: self._rollout_of(package), "the rollout to begin", timeout_s=30)
        shown = ""
        while rollout["state"] not in ("done", "halted"):
            rollout = self._fleet.until(lambda: self._rollout_of(package), "the rollout", timeout_s=30)
            states = ", ".join(f"{member['device']} {member['progress']}" for member in rollout["devices"])
            if states != shown:
                self._doing(f"rollout {rollout['state']}: {states}")
                shown = states
            time.sleep(0.5)
        note = f": {rollout['note']}" if rollout["note"] else ""
        self._say(f"rollout [bold]{rollout['state']}[/bold]: {shown}{note}")

    def _end(self) -> Report:
        recovered = self._accuracy("recovered")
        failed_in_swap = {name: camera.failed_since(self._swap_began) for name, camera in self._fleet.cameras.items()}
        self._doing("letting the last reports arrive")
        for camera in self._fleet.cameras.values():
            camera.tell("pause")
        sent = {name: Counter(_numbers(camera.hear("paused"))) for name, camera in self._fleet.cameras.items()}
        lost, duplicated = self._settle(sent)
        machines = {row["device"]: row for row in self._fleet.api.get(f"monitoring/{MODEL}/metrics")}
        devices = [
            DeviceReport(
                id=name,
                accuracy_before=self._before[name],
                accuracy_drifted=self._drifted[name],
                accuracy_recovered=recovered[name],
                labels_used=counts["labels"],
                bytes_up=machines[name]["machine"]["bytes_up"],
                bytes_down=machines[name]["machine"]["bytes_down"],
                requests=counts["requests"],
                requests_failed=counts["failed"],
                requests_failed_in_swap=failed_in_swap[name],
                package=self._fleet.serving(name) or "",
            )
            for name, counts in sent.items()
        ]
        return judge(devices, lost=lost, duplicated=duplicated, wall_s=time.monotonic() - self._began)

    def _settle(self, sent: Mapping[str, Counter[str]]) -> tuple[int, int]:
        """Wait until the server has all that the cameras sent; gives what is missing and what is there twice."""
        end = time.monotonic() + 30
        while True:
            lost, duplicated = self._compare(sent)
            if not lost or time.monotonic() > end:
                return lost, duplicated
            time.sleep(1)

    def _compare(self, sent: Mapping[str, Counter[str]]) -> tuple[int, int]:
        counted = {row["device"]: row["requests"] for row in self._fleet.api.get(f"monitoring/{MODEL}/metrics")}
        labels, samples = _per_device(self._fleet.lake, LABELS), _per_device(self._fleet.lake, SAMPLES)
        lost = duplicated = 0
        for name, counts in sent.items():
            requests = counted.get(name, 0)
            label_rows, label_ids = labels.get(name, (0, 0))
            sample_rows, sample_ids = samples.get(name, (0, 0))
            lost += max(0, counts["requests"] - requests) + max(0, counts["labels"] - label_ids)
            # Each row that was asked for a label was a sample: a missing sample shows as a label without one.
            duplicated += max(0, requests - counts["requests"]) + label_rows - label_ids + sample_rows - sample_ids
        return lost, duplicated

    def _accuracy(self, tag: str) -> dict[str, float]:
        self._doing("measuring on held-out digits")
        return {name: round(said["accuracy"], 4) for name, said in self._fleet.measure(tag).items()}

    def _all_judged(self) -> bool:
        drift = self._fleet.api.get(f"monitoring/{MODEL}/drift")
        return {row["device"] for row in drift["devices"]} >= self._worlds.keys()

    def _alert(self, kind: str) -> dict[str, Any] | None:
        for alert in self._fleet.api.get("monitoring/alerts", model=MODEL, open=True):
            if alert["kind"] == kind and not alert["device"]:
                return dict(alert)
        return None

    def _run_beside(self, refused: set[str]) -> dict[str, Any] | None:
        """The newest training run, unless it is one of those."""
        runs = self._fleet.api.get("runs", model=MODEL)
        return dict(runs[0]) if runs and runs[0]["id"] not in refused else None

    def _rollout_of(self, package: str) -> dict[str, Any] | None:
        rollouts = self._fleet.api.get("rollouts", model=MODEL)
        return next((dict(rollout) for rollout in rollouts if rollout["package"] == package), None)

    def _labels_used(self) -> int:
        return int(self._fleet.api.get(f"monitoring/{MODEL}/accuracy")["budget"]["labels_today"])

    def _doing(self, what: str) -> None:
        if self._status is not None:
            self._status.update(f"[dim]{time.monotonic() - self._began:4.0f} s[/dim] {what}")

    def _say(self, what: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._began:4.0f} s[/dim] {what}")


def _per_device(lake: str, table: str) -> dict[str, tuple[int, int]]:
    """Rows and distinct request ids by device in a table of the lake."""
    path = f"{lake}/{table}"
    if not DeltaTable.is_deltatable(path):
        return {}
    rows = pa.table(DeltaTable(path).to_pyarrow_table(columns=["device", "request_id"]))
    grouped = rows.group_by("device").aggregate([("request_id", "count"), ("request_id", "count_distinct")])
    return {row["device"]: (row["request_id_count"], row["request_id_count_distinct"]) for row in grouped.to_pylist()}


def _numbers(said: Mapping[str, Any]) -> dict[str, int]:
    return {name: value for name, value in said.items() if isinstance(value, int)}


def _shown(accuracy: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items())
