"""The director: one repository per device, versions that only grow."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from tuf.api.metadata import Metadata, Targets, Timestamp

from edge_agent.contract.errors import ConfigurationError, ManifestError
from edge_agent.contract.repository import Assignment, target_name
from fleet_server.errors import Conflict
from fleet_server.updates.director import Director, load_signer
from tests.fakes.update_server import UpdateServer
from trainer.publish.keys import DIRECTOR, KeyFolder

A = "a" * 64


def assign(director: Director, model: str, version: str, *, release: int, device: str = "camera-1") -> None:
    assignment = Assignment(device=device, release=release, rollout="r")
    director.assign(device, target_name(model, version), 100, A, assignment)


def shown(director: Director, device: str = "camera-1") -> tuple[Timestamp, dict[str, Any]]:
    data = director.metadata(device, "timestamp.json")
    assert data is not None
    timestamp = Metadata[Timestamp].from_bytes(data).signed
    data = director.metadata(device, f"{timestamp.version}.targets.json")
    assert data is not None
    return timestamp, {path: one.custom for path, one in Metadata[Targets].from_bytes(data).signed.targets.items()}


def restarted(server: UpdateServer, tmp_path: Path, **settings: Any) -> Director:
    return Director(
        tmp_path / "server/repository",
        root=(server.keys_folder / "director/1.root.json").read_bytes(),
        signer=load_signer(server.keys.path(DIRECTOR)),
        **settings,
    )


def test_an_assignment_keeps_the_devices_other_models_and_replaces_its_own(server: UpdateServer) -> None:
    director = server.director
    assign(director, "digits", "1", release=1)
    assign(director, "faces", "4", release=1)
    assign(director, "digits", "2", release=2)
    timestamp, targets = shown(director)
    assert timestamp.version == 3
    assert targets.keys() == {"digits/2/manifest.json", "faces/4/manifest.json"}
    assert msgspec.convert(targets["digits/2/manifest.json"], Assignment).release == 2
    assert (director.release_of("camera-1", "digits"), director.release_of("camera-1", "faces")) == (2, 1)


def test_devices_do_not_see_each_other(server: UpdateServer) -> None:
    assign(server.director, "digits", "1", release=1)
    assign(server.director, "digits", "2", release=1, device="camera-2")
    assert shown(server.director, "camera-2")[1].keys() == {"digits/2/manifest.json"}
    answer = httpx.get(
        f"{server.url}/updates/director/camera-2/timestamp.json", headers={"Authorization": "Bearer secret-1"}
    )
    assert answer.status_code == 403
    assert httpx.get(f"{server.url}/updates/director/camera-2/timestamp.json").status_code == 401


def test_versions_go_on_after_a_restart(server: UpdateServer, tmp_path: Path) -> None:
    assign(server.director, "digits", "1", release=1)
    again = restarted(server, tmp_path)
    assign(again, "digits", "2", release=2)
    assert shown(again)[0].version == 2


def test_a_release_that_does_not_grow_is_a_conflict_and_the_same_assignment_again_is_none(server: UpdateServer) -> None:
    assign(server.director, "digits", "2", release=5)
    assign(server.director, "digits", "2", release=5)
    assert shown(server.director)[0].version == 1
    with pytest.raises(Conflict, match="release 5 is not above the last one, 5"):
        assign(server.director, "digits", "1", release=5)
    with pytest.raises(Conflict, match="not for 'camera-2'"):
        server.director.assign("camera-2", "digits/1/manifest.json", 1, A, Assignment(device="camera-1", release=9))


@pytest.mark.parametrize(("device", "target"), [("../x", "digits/1/manifest.json"), ("camera-1", "digits/model.onnx")])
def test_an_assignment_that_is_not_well_formed_is_refused(server: UpdateServer, device: str, target: str) -> None:
    with pytest.raises(ManifestError):
        server.director.assign(device, target, 1, A, Assignment(device=device, release=1))


def test_what_has_lived_half_of_its_time_is_signed_anew(server: UpdateServer) -> None:
    director = server.director
    assign(director, "digits", "1", release=1)
    before, targets = shown(director)
    now = dt.datetime.now(dt.UTC)
    assert director.refresh(now + dt.timedelta(days=3)) == 0
    assert director.refresh(now + dt.timedelta(days=4)) == 1
    after, same = shown(director)
    assert (after.version, same) == (before.version + 1, targets)
    assert after.expires > before.expires + dt.timedelta(days=3)


def test_old_versions_are_removed_but_for_those_being_read(server: UpdateServer, tmp_path: Path) -> None:
    for release in range(1, 8):
        assign(server.director, "digits", str(release), release=release)
    kept = sorted(path.name for path in (tmp_path / "server/repository/director/camera-1").glob("*.targets.json"))
    assert kept == ["5.targets.json", "6.targets.json", "7.targets.json"]


def test_a_key_that_the_root_does_not_name_is_a_configuration_error(server: UpdateServer, tmp_path: Path) -> None:
    other = KeyFolder(tmp_path / "other").make("server/director")
    with pytest.raises(ConfigurationError, match="does not name the director's key"):
        Director(tmp_path / "elsewhere", root=(server.keys_folder / "director/1.root.json").read_bytes(), signer=other)


def test_a_key_file_that_is_missing_or_locked_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.pem"):
        load_signer(tmp_path / "nowhere.pem")
    keys = KeyFolder(tmp_path, passphrase="open sesame")
    keys.make("server/director")
    with pytest.raises(ConfigurationError):
        load_signer(keys.path("server/director"))
    assert load_signer(keys.path("server/director"), "open sesame").public_key.keyid
