"""What happens in the demo, from a fleet that is right to one that is right again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.text import Text

from trainer.demo.accounts import Received, Sent, difference, labels_before, received
from trainer.demo.fleet import MODEL, Fleet
from trainer.demo.processes import DemoFailed
from trainer.demo.report import DeviceReport, Moment, Report, judge
from trainer.recipe import load_module

_STEADY_S = 10.0
# Two reports of each device: what would come twice has come by then.
_QUIET_S = 5.0
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
        self._measured: dict[str, dict[str, dict[str, Any]]] = {}
        self._drift_at_ms = 0
        self._problems: list[str] = []
        self._told: list[Moment] = []

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
        time.sleep(_STEADY_S)
        accuracy = self._measure("before")
        drift = self._alert("drift")
        if drift is not None:
            self._problems.append(f"drift was seen before the world changed: {drift['reason']}")
        self._say(f"accuracy on held-out digits: {_shown(accuracy)}; drift: {drift['reason'] if drift else 'none'}")

    def _world_changes(self) -> None:
        for name, camera in self._fleet.cameras.items():
            camera.tell("world", **self._worlds[name])
        self._say(
            "[yellow]the world changes[/yellow]: contrast, blur, rotation and noise, each camera in its own degree"
        )
        accuracy = self._measure("drifted")
        self._say(f"accuracy on held-out digits: {_shown(accuracy)} (the server knows none of these labels)")
        self._doing("waiting for drift to be seen, from counts alone")
        labels = self._labels_used()
        alert = self._fleet.until(lambda: self._alert("drift"), "a drift alert of the fleet", timeout_s=90)
        self._drift_at_ms = int(alert["opened_at_ms"])
        self._say(f"[yellow]drift[/yellow], seen with {labels} labels: {escape(alert['reason'])}")

    def _learn(self) -> str:
        """Wait for a retraining that is released; gives its package. A first one may lack the evidence to be."""
        self._doing("the server asks for a trickle of labels, within its budget")
        refused: set[str] = set()
        while True:
            run = self._fleet.until(
                lambda: self._run_beside(refused), "the harm rule to ask for a retraining", timeout_s=120
            )
            self._say(f"[yellow]harm[/yellow], after {self._labels_used()} labels: {escape(run['reason'])}")
            while run["state"] in {"queued", "running"}:
                self._doing(f"retraining: {run.get('stage') or 'waiting for the trainer'} {run.get('message') or ''}")
                time.sleep(0.5)
                self._swap_began = time.monotonic()  # no rollout begins before the run has ended
                run = self._fleet.until(lambda: self._run_beside(refused), "the run", timeout_s=10)
            self._say(f"retraining [bold]{run['state']}[/bold]: {escape('; '.join(run['reasons']))}")
            if run["state"] == "released":
                return str(run["package"])
            refused.add(run["id"])
            if len(refused) == _MOST_RUNS:
                raise DemoFailed(f"{_MOST_RUNS} retrainings gave no better model")

    def _roll_out(self, package: str) -> None:
        self._doing("rolling out in waves, agents swap under load")
        rollout = self._fleet.until(lambda: self._rollout_of(package), "the rollout to begin", timeout_s=30)
        shown = ""
        while rollout["state"] not in ("done", "halted"):
            rollout = self._fleet.until(lambda: self._rollout_of(package), "the rollout", timeout_s=30)
            states = ", ".join(f"{member['device']} {member['progress']}" for member in rollout["devices"])
            if states != shown:
                self._doing(f"rollout {rollout['state']}: {states}")
                shown = states
            time.sleep(0.5)
        note = f": {escape(rollout['note'])}" if rollout["note"] else ""
        self._say(f"rollout [bold]{rollout['state']}[/bold]: {shown}{note}")

    def _end(self) -> Report:
        self._say(f"[green]accuracy on held-out digits: {_shown(self._measure('recovered'))}[/green]")
        failed_in_swap = {name: camera.failed_since(self._swap_began) for name, camera in self._fleet.cameras.items()}
        self._doing("letting the last reports arrive")
        for camera in self._fleet.cameras.values():
            camera.tell("pause")
        sent = {name: _sent(camera.hear("paused")) for name, camera in self._fleet.cameras.items()}
        lost, duplicated = self._settle(sent)
        if early := labels_before(self._fleet.lake, self._drift_at_ms):
            self._problems.append(f"{early} labels had been given before drift was seen")
        machines = {row["device"]: row["machine"] for row in self._metrics()}
        devices = [
            DeviceReport(
                id=name,
                **{f"accuracy_{tag}": round(said[name]["accuracy"], 4) for tag, said in self._measured.items()},
                labels_used=len(what.labels),
                bytes_up=machines[name]["bytes_up"],
                bytes_down=machines[name]["bytes_down"],
                requests=what.requests,
                requests_failed=what.failed,
                requests_failed_in_swap=failed_in_swap[name],
                package_before=", ".join(self._measured["before"][name]["packages"]),
                package=", ".join(self._measured["recovered"][name]["packages"]),
            )
            for name, what in sent.items()
        ]
        wall_s = time.monotonic() - self._began
        report = judge(devices, lost=lost, duplicated=duplicated, wall_s=wall_s, problems=self._problems)
        report.story = self._told
        return report

    def _settle(self, sent: Mapping[str, Sent]) -> tuple[int, int]:
        """Wait until the server has all that the cameras sent, and nothing more comes; gives lost and duplicated."""
        end = time.monotonic() + 30
        while self._compare(sent)[0] and time.monotonic() < end:
            time.sleep(1)
        time.sleep(_QUIET_S)
        return self._compare(sent)

    def _compare(self, sent: Mapping[str, Sent]) -> tuple[int, int]:
        ingest = self._fleet.api.get("ingest")
        has = received(self._fleet.lake, self._metrics(), ingest)
        found = [difference(what, has.get(name, Received(requests=0))) for name, what in sent.items()]
        return sum(lost for lost, _ in found) + ingest["set_aside"], sum(surplus for _, surplus in found)

    def _metrics(self) -> list[dict[str, Any]]:
        return list(self._fleet.api.get(f"monitoring/{MODEL}/metrics"))

    def _measure(self, tag: str) -> dict[str, float]:
        """Each camera's accuracy now; who answered is kept for the report."""
        self._doing("measuring on held-out digits")
        self._measured[tag] = self._fleet.measure(tag)
        return {name: said["accuracy"] for name, said in self._measured[tag].items()}

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
        at_s = time.monotonic() - self._began
        self._told.append(Moment(at_s=round(at_s, 1), what=Text.from_markup(what).plain))
        self._console.print(f"[dim]{at_s:4.0f} s[/dim] {what}")


def _sent(said: Mapping[str, Any]) -> Sent:
    return Sent(requests=said["requests"], failed=said["failed"], labels=said["labels"])


def _shown(accuracy: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items())
