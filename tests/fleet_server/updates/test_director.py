"""The director: one repository per device, versions that only grow."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from edge_agent.contract.errors import ConfigurationError, ManifestError
from edge_agent.contract.repository import AssignedHardware, Assignment, target_name
from fleet_server.errors import Conflict
from fleet_server.updates.director import Director, load_signer
from fleet_server.updates.director_store import DirectorStore
from fleet_server.updates.orders import Order
from tests.fakes.update_server import UpdateServer
from trainer.publish.keys import DIRECTOR, KeyFolder

A = "a" * 64


def assign(director: Director, model: str, version: str, *, release: int, device: str = "camera-1") -> None:
    assignment = Assignment(device=device, release=release, rollout="r")
    director.assign(device, target_name(model, version), 100, A, assignment)


def order(device: str, *, release: int, model: str = "digits") -> Order:
    assignment = Assignment(device=device, release=release, rollout="r")
    return Order(device=device, target=target_name(model, "9"), length=100, sha256=A, assignment=assignment)


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


def test_old_versions_are_removed_but_for_those_being_read(server: UpdateServer) -> None:
    for release in range(1, 8):
        assign(server.director, "digits", str(release), release=release)
    names = [f"{version}.{role}.json" for version in range(9) for role in ("snapshot", "targets")]
    kept = [name for name in names if server.director.metadata("camera-1", name) is not None]
    assert kept == [f"{version}.{role}.json" for version in (5, 6, 7) for role in ("snapshot", "targets")]


def test_the_three_documents_are_those_that_python_tuf_would_sign(server: UpdateServer) -> None:
    hardware = AssignedHardware(architecture="aarch64", runtimes={"odd": 'quote " backslash \\ bell \a umlaut ü'})
    assignment = Assignment(device="camera-1", release=1, rollout="r", hardware=hardware)
    server.director.assign("camera-1", "digits/1/manifest.json", 100, A, assignment)
    root = Metadata[Root].from_bytes(server.director.root.encode()).signed
    kinds: dict[str, type[Any]] = {"timestamp": Timestamp, "1.snapshot": Snapshot, "1.targets": Targets}
    read = {}
    for name, kind in kinds.items():
        data = server.director.metadata("camera-1", f"{name}.json")
        assert data is not None
        metadata = Metadata.from_bytes(data)
        assert isinstance(metadata.signed, kind)
        root.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
        assert json.loads(data)["signed"] == metadata.signed.to_dict()
        assert metadata.signed.spec_version == Targets(1).spec_version
        read[kind.type] = (data, metadata.signed)
    read["timestamp"][1].snapshot_meta.verify_length_and_hashes(read["snapshot"][0])
    read["snapshot"][1].meta["targets.json"].verify_length_and_hashes(read["targets"][0])
    (target,) = read["targets"][1].targets.values()
    assert msgspec.convert(target.custom, Assignment) == assignment


def test_many_are_assigned_at_once_and_what_is_wrong_with_one_of_them_is_its_own_matter(server: UpdateServer) -> None:
    orders = [order(f"d{number}", release=1) for number in range(1200)]
    assign(server.director, "digits", "1", release=7, device="d5")
    failures = server.director.assign_many([*orders, order("No Name", release=1)])
    assert failures.keys() == {"d5", "No Name"}
    assert isinstance(failures["d5"], Conflict)
    assert server.director.release_of("d1199", "digits") == 1
    assert len(server.director.devices()) == 1200


def test_two_models_of_one_device_in_one_batch_are_one_version(server: UpdateServer) -> None:
    batch = [order("camera-1", release=1), order("camera-1", release=4, model="faces")]
    assert server.director.assign_many(batch) == {}
    timestamp, targets = shown(server.director)
    assert (timestamp.version, len(targets)) == (1, 2)


def test_a_device_that_is_other_hardware_by_now_is_addressed_anew_under_the_same_release(server: UpdateServer) -> None:
    board = AssignedHardware(architecture="aarch64", accelerator="orin", runtimes={"onnxruntime": "1.23"})
    assignment = Assignment(device="camera-1", release=3, hardware=board)
    server.director.assign("camera-1", "digits/1/manifest.json", 100, A, assignment)
    newer = msgspec.structs.replace(board, runtimes={"onnxruntime": "1.24"})
    assert server.director.readdress({"camera-1": newer, "camera-2": newer}) == {}
    assert shown(server.director)[0].version == 1, "other versions of runtimes are no other hardware"
    other = msgspec.structs.replace(board, accelerator="thor")
    server.director.readdress({"camera-1": other})
    assert server.director.assignment("camera-1", "digits") == msgspec.structs.replace(assignment, hardware=other)
    with pytest.raises(Conflict):
        server.director.assign("camera-1", "digits/2/manifest.json", 100, A, assignment)


def test_what_a_replaced_key_signed_is_signed_anew(server: UpdateServer, tmp_path: Path) -> None:
    for number in range(3):
        assign(server.director, "digits", "1", release=1, device=f"d{number}")
    root = Metadata[Root].from_bytes(server.director.root.encode())
    signer = CryptoSigner.generate_ed25519()
    for role in ("targets", "snapshot", "timestamp"):
        (old,) = root.signed.roles[role].keyids
        root.signed.revoke_key(old, role)
        root.signed.add_key(signer.public_key, role)
    root.signed.version = 2
    root.sign(server.keys.signer("offline/director-root"))
    director = Director(tmp_path / "server/repository", root=root.to_bytes(), signer=signer)
    assert director.refresh() == 3
    assert director.refresh() == 0
    data = director.metadata("d2", "2.targets.json")
    assert data is not None
    assert list(Metadata.from_bytes(data).signatures) == [signer.public_key.keyid]


def test_files_of_an_earlier_version_are_brought_in_once_and_damaged_ones_wait_for_a_backup(
    server: UpdateServer, tmp_path: Path
) -> None:
    director = server.director
    for release in (1, 2):
        for device in ("d1", "d2"):
            assign(director, "digits", str(release), release=release, device=device)
    folder = tmp_path / "older"
    for device in ("d1", "d2"):
        place = folder / "director" / device
        place.mkdir(parents=True)
        for name in ("timestamp.json", "2.snapshot.json", "2.targets.json"):
            data = director.metadata(device, name)
            assert data is not None
            (place / name).write_bytes(data)
    whole = (folder / "director/d2/2.targets.json").read_bytes()
    (folder / "director/d2/2.targets.json").write_bytes(whole[:100])
    signer = load_signer(server.keys.path(DIRECTOR))
    moved = Director(folder, root=director.root.encode(), signer=signer)
    assert moved.metadata("d1", "2.targets.json") == director.metadata("d1", "2.targets.json")
    assert moved.metadata("d1", "timestamp.json") == director.metadata("d1", "timestamp.json")
    assert moved.release_of("d1", "digits") == 2
    with pytest.raises(ConfigurationError, match="restore"):
        assign(moved, "digits", "3", release=3, device="d2")
    (folder / "director/d2/2.targets.json").write_bytes(whole)
    again = Director(folder, root=director.root.encode(), signer=signer)
    assert again.release_of("d2", "digits") == 2
    assert not (folder / "director").exists()
    assign(again, "digits", "3", release=3, device="d2")
    assert shown(again, "d2")[0].version == 3


def test_a_director_killed_in_the_middle_of_a_batch_has_signed_all_of_it_or_nothing(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from securesystemslib.signer import CryptoSigner\n"
        "from benchmarks.director import _root, order; from fleet_server.updates.director import Director\n"
        "signer = CryptoSigner.generate_ed25519()\n"
        "director = Director(Path(sys.argv[1]), root=_root(signer), signer=signer); print('ready', flush=True)\n"
        "for release in range(1, 10_000): director.assign_many([order(number, release) for number in range(100)])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()
        time.sleep(1.0)
        running.kill()
    store = DirectorStore(tmp_path / "director.db")
    found = [store.newest(device) for device in store.devices()]
    assert len(found) == 100
    assert len({one[0] for one in found if one is not None}) == 1


def test_a_damaged_store_is_a_configuration_error_that_says_what_to_do(server: UpdateServer, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/director.db").write_bytes(b"SQLite format 3\0" + bytes(5000))
    with pytest.raises(ConfigurationError, match=r"director\.db is damaged .* restore it from a backup"):
        Director(
            tmp_path / "broken", root=server.director.root.encode(), signer=load_signer(server.keys.path(DIRECTOR))
        )


def test_a_key_that_the_root_does_not_name_is_a_configuration_error(server: UpdateServer, tmp_path: Path) -> None:
    other = KeyFolder(tmp_path / "other").make("server/director")
    with pytest.raises(ConfigurationError, match="does not name the director's key"):
        Director(tmp_path / "elsewhere", root=(server.keys_folder / "director/1.root.json").read_bytes(), signer=other)


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path)
    keys.make("server/director")
    load_signer(keys.path("server/director"))
    keys.path("server/director").chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_signer(keys.path("server/director"))


def test_a_key_file_that_is_missing_or_locked_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.pem"):
        load_signer(tmp_path / "nowhere.pem")
    keys = KeyFolder(tmp_path, passphrase="open sesame")
    keys.make("server/director")
    with pytest.raises(ConfigurationError):
        load_signer(keys.path("server/director"))
    assert load_signer(keys.path("server/director"), "open sesame").public_key.keyid
