"""The fleet that power cuts are tried in: a real server, a device at version 1, and version 2 waiting for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.manifest import Probation, Shadow
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.runtime.package import Package
from tests.e2e.running_agent import shoal_agent, until
from tests.fakes.packages import INPUT, OUTPUT, answer, model_weights, reference_images
from tests.fakes.weight_packages import make_weighty, weights
from tests.fleet_server.running_server import Running, prepared, server
from tests.power_cut.power import Outlet, PoweredAgent
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder
from trainer.publish.repository import Publisher

MODEL = "digits"
SPARE, OLD, NEW = "0", "1", "2"
VERSIONS = (SPARE, OLD, NEW)
_SETTINGS = "tick_s = 0.2\n[rollouts.gate]\nsoak_s = 0.2\n"
_PROBATION = Probation(seconds=0.1, max_error_rate=0.01)
_SHADOW = Shadow(seconds=0.1)
_QUIET = SamplingPolicy(samples_per_minute=0.0, labels_per_minute=0.0)
_IMAGES = reference_images(3, seed=7)


class Fleet:
    """A server, and devices that stand before an update.

    Args:
        folder: Where everything lies.
    """

    def __init__(self, folder: Path, running: Running, keys: Path, outlet: Outlet) -> None:
        self.folder, self._running, self._keys, self._outlet = folder, running, keys, outlet
        self.spare, self.old, self.new = (self._package(version) for version in VERSIONS)

    def device(self, name: str) -> Path:
        """The state folder of a new device that has committed to version 1 and is switched off."""
        state = self.folder / name
        config = write_config(state)
        with self._running.client() as client:
            claim = client.post("/api/v1/claims", json={"device": name}).json()["claim"]
        done = shoal_agent(
            "enrol", "--config", config, "--server", self._running.url, "--claim", claim, "--device", name
        )
        assert done.returncode == 0, done.stderr
        return state

    def bring_old(self, states: list[Path]) -> None:
        """Bring version 0 to these devices, then version 1, then switch them off: 0 stays as the spare."""
        self._bring(states, self.spare)
        self._bring(states, self.old)

    def offer_new(self, states: list[Path]) -> None:
        """Release version 2 to the fleet: each device finds it announced whenever it is switched on."""
        self._bring([copy_state(state, state.with_name(f"{state.name}-first")) for state in states], self.new)

    def _bring(self, states: list[Path], package: Package) -> None:
        agents = [self._outlet.start(state, write_config(state, report_s=0.5)) for state in states]
        self._release(package)
        with self._running.client() as client:
            until(lambda: client.get("/api/v1/rollouts").json()[0]["state"] == "done", package.manifest.version)
        for agent in agents:
            assert agent.stop() == 0, agent.log.read_text()

    def _package(self, version: str) -> Package:
        content = weights(updates=int(version)).tobytes()
        return make_weighty(
            self.folder / f"package-{version}", version=version, content=content, external_data=True,
            probation=_PROBATION, shadow=_SHADOW, sampling=_QUIET,
        )  # fmt: skip

    def _release(self, package: Package) -> None:
        with Publisher(self._keys, self._running.url, self._running.token) as publisher:
            publisher.publish(package)
        with self._running.client() as client:
            order = {"model": MODEL, "package": package.digest, "waves": ["100%"]}
            done = client.post("/api/v1/rollouts", json=order)
            assert done.status_code == 201, done.text


@contextlib.contextmanager
def fleet(folder: Path, outlet: Outlet) -> Iterator[Fleet]:
    """A fleet with a running server."""
    keys = folder / "keys"
    ImageSigning(KeyFolder(keys)).create((MODEL,))
    (folder / "server.toml").write_text(_SETTINGS)
    data = prepared(folder / "data", keys)
    with server(data, "--config", str(folder / "server.toml")) as running:
        yield Fleet(folder, running, keys, outlet)


def write_config(state: Path, *, report_s: float = 600.0) -> Path:
    """The settings of a device beside its state folder; gives the file."""
    config = state.with_suffix(".toml")
    config.write_text(f'state = "{state}"\n[api]\nport = 0\n[report]\ninterval_s = {report_s}\n')
    return config


def copy_state(state: Path, copy: Path) -> Path:
    """A copy of a state folder."""
    shutil.copytree(state, copy, symlinks=True)
    return copy


def slots(state: Path) -> dict[str, Any]:
    """What slots.json says of the model."""
    try:
        return dict(json.loads((state / "slots.json").read_text())["models"].get(MODEL, {}))
    except FileNotFoundError:
        return {}


def has_committed(state: Path, package: Package) -> bool:
    """Whether the device has committed to a package, and has cleaned up after it."""
    record = slots(state)
    if record.get("last_known_good") != package.digest or record.get("step", "committed") != "committed":
        return False
    here = {path.name for path in (state / "packages").iterdir()}
    return here == {record["active"], record.get("spare", record["active"])}


def listens(agent: PoweredAgent) -> bool:
    """Whether its API can be asked."""
    return (agent.state / "agent.json").exists()


def address_of(state: Path) -> str:
    """Where the agent that runs on a state folder says that its API is."""
    return str(json.loads((state / "agent.json").read_text())["api"])


def said_address(agent: PoweredAgent) -> str:
    """Where its log says that its API is; empty as long as it does not. Of the first agent on a state folder."""
    found = re.search(r"listening on (http://[0-9.:]+)", agent.log.read_text() if agent.log.exists() else "")
    return found[1] if found else ""


def ask(address: str) -> NDArray[np.float32]:
    """What the API at an address answers to the images, over HTTP.

    Raises:
        OSError, ValueError: It answers nothing, or an error.
    """
    tensor = {"name": INPUT, "shape": list(_IMAGES.shape), "datatype": "FP32", "data": _IMAGES.ravel().tolist()}
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    try:
        connection.request("POST", f"/v2/models/{MODEL}/infer", json.dumps({"inputs": [tensor]}))
        answered = connection.getresponse()
        body = answered.read()
    finally:
        connection.close()
    if answered.status != 200:
        raise ValueError(f"{answered.status}: {body[:300]!r}")
    outputs = {output["name"]: output for output in json.loads(body)["outputs"]}
    return np.array(outputs[OUTPUT]["data"], np.float32).reshape(outputs[OUTPUT]["shape"])


def version_that_answers(address: str) -> str | None:
    """Which version's weights give the answers that are given at an address; None where none's do."""
    found = ask(address)
    for version in VERSIONS:
        if np.allclose(found, answer(*model_weights(int(version)), _IMAGES), atol=1e-5):
            return version
    return None


def wait_for(what: Any, seconds: float) -> bool:
    """Wait until ``what()`` is true, for so long; gives whether it became so."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        if what():
            return True
        time.sleep(0.01)
    return bool(what())
