"""A new version comes as a difference from the one that serves: both programs real processes, as users start them."""

from __future__ import annotations

from pathlib import Path

from edge_agent.contract.manifest import Probation
from edge_agent.runtime.package import Package
from tests.e2e.running_agent import agent, until
from tests.fakes.weight_packages import WEIGHTS, make_weighty, sha256, weights
from tests.fleet_server.running_server import Running, prepared, server
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder
from trainer.publish.repository import Publisher

OLD, NEW = weights().tobytes(), weights(updates=1).tobytes()
SETTINGS = "tick_s = 0.2\n[rollouts.gate]\nsoak_s = 0.2\n"
# Nobody listens on port 9.
UPDATES = '[updates]\nmirrors = ["http://127.0.0.1:9"]\nmax_kib_per_s = 2048\n'


def publish(at: Running, keys: Path, package: Package) -> None:
    with Publisher(keys, at.url, at.token) as publisher:
        publisher.publish(package)


def roll_out(at: Running, package: Package) -> None:
    with at.client() as client:
        wanted = {"model": "digits", "package": package.digest, "waves": ["100%"]}
        done = client.post("/api/v1/rollouts", json=wanted)
        assert done.status_code == 201, done.text


def test_a_device_gets_a_new_version_although_the_server_has_lost_its_whole_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    ImageSigning(KeyFolder(keys)).create(("digits",))
    (tmp_path / "server.toml").write_text(SETTINGS)
    data = prepared(tmp_path / "data", keys)
    first = make_weighty(tmp_path / "1", version="1", content=OLD, probation=Probation(seconds=0.2))
    second = make_weighty(
        tmp_path / "2", version="2", content=NEW, parent=first.digest, probation=Probation(seconds=0.2)
    )
    with server(data, "--config", str(tmp_path / "server.toml")) as running, agent(tmp_path / "device") as device:
        device.settings.write_text(device.settings.read_text() + UPDATES)
        device.enrol(running, "press-7")
        device.start()
        publish(running, keys, first)
        roll_out(running, first)
        until(lambda: device.slots.get("last_known_good") == first.digest, "version 1 to be committed")
        with running.client() as client:
            until(lambda: client.get("/api/v1/rollouts").json()[0]["state"] == "done", "its rollout to be done")
        publish(running, keys, second)
        repository = data / "repository"
        made = repository / f"deltas/v1/{sha256(OLD)}-{sha256(NEW)}"
        until(made.exists, "the delta from the parent, made when the version was released")
        assert 0 < made.stat().st_size < 0.65 * len(NEW)
        (repository / "blobs" / sha256(NEW)).unlink()
        roll_out(running, second)
        until(lambda: device.slots.get("last_known_good") == second.digest, "version 2 to be committed")
        assert (device.state / "packages" / second.digest / WEIGHTS).read_bytes() == NEW
