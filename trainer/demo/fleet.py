"""The demo's fleet: keys, server, trainer, agents and cameras, each a process as in production, all on loopback."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.demo.camera_process import CameraProcess
from trainer.demo.processes import DemoFailed, Processes
from trainer.demo.server_api import ServerApi
from trainer.own_module import own_module

MODEL = "digits"
FLEET = "demo"

# Production watches for minutes and hours; the demo has to show the same rules within a few minutes. What is cut short
# is how long is waited, not what must be true: significance, effect floor, persistence and the health gate all stand.
_SERVER_SETTINGS = """\
fleet = "{fleet}"
report_interval_s = 2.0
tick_s = 0.5
[runs]
cool_down_s = 20.0
[rollouts]
waves = [1, 1.0]
[rollouts.gate]
soak_s = 4.0
min_requests = 30
[monitoring.drift]
min_rows = 200
persistence = 2
[monitoring.harm]
min_labels = {min_labels}
[monitoring.budget]
alert_per_minute = {labels_per_minute}
per_day = {labels_per_day}
"""
_AGENT_SETTINGS = """\
state = "{state}"
[api]
port = 0
[report]
interval_s = 2.0
"""
# Nine processes share two cores here: a library that starts a thread per core would only make them wait.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast the demo goes.

    Args:
        per_second: Requests per second of each camera.
        labels_per_minute: Labels asked of each device and minute while drift is open.
        labels_per_day: Budget of labels that the whole demo may use.
        min_labels: Labels before the harm rule may speak.
    """

    per_second: float = 25.0
    labels_per_minute: float = 240.0
    labels_per_day: int = 1_500
    min_labels: int = 360


class Fleet:
    """Starts everything and knows where it is.

    Args:
        folder: Where all state of the demo lies; empty at the start.
        recipes: Folder of recipes.
    """

    def __init__(self, processes: Processes, folder: Path, recipes: Path, pace: Pace) -> None:
        self._processes, self._folder, self._recipes, self._pace = processes, folder, recipes, pace
        self._data, self._keys = folder / "server", folder / "keys"
        self.lake = str(self._data / "lake")
        self.cameras: dict[str, CameraProcess] = {}
        self._api: ServerApi | None = None

    @property
    def api(self) -> ServerApi:
        """The server's REST API."""
        if self._api is None:
            raise DemoFailed("the server has not been started yet")
        return self._api

    def start_server(self, http_port: int) -> str:
        """Make keys, start server and trainer's worker; gives the console's address with a login."""
        run, shoal = self._processes.run, own_module("fleet_server.cli")
        run("keys", [*shoal, "keys", "init", str(self._keys), "--model", MODEL])
        run("server-init", [*shoal, "server", "init", "--data", str(self._data), "--keys", str(self._keys)])
        settings = self._folder / "server.toml"
        settings.write_text(
            _SERVER_SETTINGS.format(
                fleet=FLEET,
                min_labels=self._pace.min_labels,
                labels_per_minute=self._pace.labels_per_minute,
                labels_per_day=self._pace.labels_per_day,
            )
        )
        options = ["--config", str(settings), "--port", str(http_port), "--broker-port", "0"]
        command = own_module("fleet_server.cli", "server", "--data", str(self._data), *options)
        self._processes.start("server", command, environment=_ONE_THREAD)
        url = self._processes.wait_for_file(self._data / "server.json")["url"]
        token = (self._data / "admin.token").read_text().strip()
        self._api = ServerApi(url, token)
        return self.login()

    def login(self) -> str:
        """Address of the console with a new one-time login."""
        return str(self.api.post("logins", {})["url"])

    def guide(self) -> str:
        """What can be done with a fleet that runs on, for a person to copy."""
        addresses = {name: self._address(name) for name in self.cameras}
        devices = "\n".join(f"  {name:<9}{address}" for name, address in addresses.items())
        first = next(iter(addresses.values()))
        return f"""\
Everything runs on; Ctrl-C ends it. State and logs: {self._folder}
Console (the link works once; another: shoal login --data {self._data}):
  {self.login()}
The devices' APIs:
{devices}
Try, in another terminal (. .venv/bin/activate first):
  curl {first}/v2/models/{MODEL}
  shoal devices list --data {self._data}
  shoal rollouts create {MODEL} 1 --data {self._data}"""

    def train_first(self) -> float:
        """Import the base rows, train the first model on them and publish it; gives its accuracy on the holdout."""
        run, trainer = self._processes.run, [*own_module("fleet_server.cli"), "trainer"]
        recipes = ["--recipes", str(self._recipes)]
        run("import", [*trainer, "import", MODEL, "--lake", self.lake, *recipes])
        out = self._folder / "first"
        run(
            "first-model",
            [*trainer, "train", MODEL, "--lake", self.lake, "--out", str(out), "--version", "1", *recipes],
        )
        access, secret = self._trainer_access()
        run("publish", [*trainer, "publish", str(out), *access], environment=secret)
        # No device has enrolled yet: this makes it the release that each new device gets.
        self.api.post("rollouts", {"model": MODEL, "package": "1", "reason": "the first model"})
        return float(self.api.get(f"models/{MODEL}")["versions"][0]["evaluation"]["accuracy"])

    def start_worker(self) -> None:
        """Start the trainer's worker, which waits for runs. The signing keys are with it, not with the server."""
        options = ["--poll", "1", "--work", str(self._folder / "work"), "--recipes", str(self._recipes)]
        access, secret = self._trainer_access()
        command = own_module("fleet_server.cli", "trainer", "work", *access, *options)
        self._processes.start("trainer", command, environment=_ONE_THREAD | secret)

    def start_device(self, name: str, number: int) -> None:
        """Enrol a device by a claim token, start its agent and its camera."""
        state = self._folder / "devices" / name
        settings = self._folder / f"{name}.toml"
        settings.write_text(_AGENT_SETTINGS.format(state=state))
        claim = self.api.post("claims", {"device": name})["claim"]
        agent = own_module("edge_agent.cli")
        self._processes.run(
            f"{name}-enrol",
            [*agent, "enrol", "--config", str(settings), "--server", self.api.url, "--device", name],
            environment={"SHOAL_CLAIM": claim},
        )
        self._processes.start(f"{name}-agent", [*agent, "run", "--config", str(settings)], environment=_ONE_THREAD)
        address = self._address(name)
        self.until(lambda: self.serving(name) is not None, f"{name} to serve its first model", timeout_s=60)
        options = ["--recipe", str(self._recipes / MODEL), "--per-second", str(self._pace.per_second)]
        port = str(urlsplit(address).port)
        command = own_module("trainer.demo.camera", "--port", port, "--seed", str(number), *options)
        process = self._processes.start(f"{name}-camera", command, environment=_ONE_THREAD, pipes=True)
        self.cameras[name] = CameraProcess(name, process)

    def serving(self, device: str) -> str | None:
        """Digest of the package that a device has committed to, or None."""
        reported = self.api.get(f"devices/{device}")["reported"].get(MODEL)
        if reported is None or not reported["version"] or reported["step"] not in ("committed", "probation"):
            return None
        return str(reported["package"])

    def measure(self, tag: str) -> dict[str, dict[str, Any]]:
        """Each camera's accuracy on held-out digits, as it sees them now."""
        for camera in self.cameras.values():
            camera.tell("measure", tag=tag)
        return {name: camera.hear("measured", tag=tag) for name, camera in self.cameras.items()}

    def until(self, true: Callable[[], Any], what: str, *, timeout_s: float, poll_s: float = 0.5) -> Any:
        """Wait until ``true()`` is, and give what it gave.

        Raises:
            DemoFailed: It does not come true in time, or a process has ended.
        """
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            self._processes.check()
            if found := true():
                return found
            time.sleep(poll_s)
        raise DemoFailed(f"waited {timeout_s:g} s in vain for {what}; the logs are in {self._folder / 'logs'}")

    def run_on(self) -> None:
        """Let everything run until Ctrl-C, or until a process ends by itself."""
        for camera in self.cameras.values():
            camera.tell("resume")
        while True:
            self._processes.check()
            time.sleep(1)

    def _address(self, device: str) -> str:
        """Base URL of a device's local API."""
        return str(self._processes.wait_for_file(self._folder / "devices" / device / "agent.json")["api"])

    def _trainer_access(self) -> tuple[Sequence[str], dict[str, str]]:
        """Options and environment of the trainer's commands: a token on a command line is there for all to read."""
        token = self._folder / "trainer.token"
        if not token.exists():
            token.touch(mode=0o600)
            token.write_text(self.api.post("tokens", {"role": "trainer", "name": "demo"})["token"])
        return ["--server", self.api.url, "--keys", str(self._keys)], {"SHOAL_TOKEN": token.read_text()}
