"""What somebody can sign and serve who has stolen keys, or sits between a server and its devices."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping
from typing import Any

import msgspec
from securesystemslib.signer import CryptoSigner, Signer
from starlette.types import Send
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from edge_agent.contract.messages import Desired, Event, EventKind, UpdateStep
from edge_agent.contract.repository import Assignment, director_metadata_path, image_metadata_path, target_name
from edge_agent.runtime.package import Package
from fleet_server.updates.director import Director
from tests.fakes.update_server import Answer, UpdateServer
from tests.fakes.updating_device import UpdatingDevice
from trainer.publish.keys import DIRECTOR_ROOT, IMAGE_ROOT, SNAPSHOT, TIMESTAMP

DIRECTOR_PATH = director_metadata_path("camera-1")
IMAGE_PATH = image_metadata_path()
_DAY = dt.timedelta(days=1)


def unharmed(device: UpdatingDevice, *words: str, version: str = "1", refused: bool = True) -> Event | None:
    """The version before serves on, and the device says why; gives the event where metadata or files were refused."""
    assert device.version == version
    assert device.infer().shape == (1, 10)
    reported = device.reported()
    assert reported.version == version
    for word in words:
        assert word in reported.reason, reported.reason
    if not refused:
        return None
    assert reported.step is UpdateStep.FAILED
    told = device.told(EventKind.METADATA_REFUSED) + device.told(EventKind.UPDATE_FAILED)
    assert told, "refusals are reported"
    assert told[-1].reason == reported.reason
    return told[-1]


def recovers(server: UpdateServer, device: UpdatingDevice, desired: Desired, version: str = "2") -> None:
    """The attack ends, and the update goes on by itself."""
    server.line.leave()
    device.rest(3600)
    device.update(desired)
    assert device.version == version
    assert device.reported().step is UpdateStep.COMMITTED


def retaken(server: UpdateServer, device: UpdatingDevice, package: Package) -> None:
    """The stolen director's key is replaced, and the true director's word counts again."""
    server.line.leave()
    desired = server.assign(package, release=3)
    new_director(server)
    device.update(desired)
    assert device.version == package.manifest.version


def target(package: Package, **assignment: Any) -> TargetFile:
    """What a director would sign of a package, for camera-1 unless it is told otherwise."""
    path = target_name(package.manifest.name, package.manifest.version)
    custom = {"custom": msgspec.to_builtins(Assignment(**{"device": "camera-1", "release": 2, **assignment}))}
    length = (package.folder / "manifest.json").stat().st_size
    return TargetFile(length, {"sha256": package.digest}, path, unrecognized_fields=custom)


def director_files(
    signer: Signer, version: int, *targets: TargetFile, expires: dt.datetime | None = None, **more: Any
) -> dict[str, bytes]:
    """A director's three documents by their paths.

    Args:
        more: Further fields of the targets.
    """
    until = (expires or dt.datetime.now(dt.UTC) + _DAY).replace(microsecond=0)
    named = {one.path: one for one in targets}
    roles: dict[str, Signed] = {
        f"{version}.targets.json": Targets(version, expires=until, targets=named, **more),
        f"{version}.snapshot.json": Snapshot(version, expires=until, meta={"targets.json": MetaFile(version)}),
        "timestamp.json": Timestamp(version, expires=until, snapshot_meta=MetaFile(version)),
    }
    return {DIRECTOR_PATH + name: signed_by(role, signer) for name, role in roles.items()}


def image_files(
    server: UpdateServer, version: int, versions: Mapping[str, MetaFile] | None = None, *, snapshot_length: int = 0
) -> dict[str, bytes]:
    """Snapshot and timestamp of the image repository, signed with the publisher's stolen keys.

    Args:
        versions: Changes of what the snapshot says of roles.
        snapshot_length: What the timestamp says of the snapshot, where not 0.
    """
    until = dt.datetime.now(dt.UTC).replace(microsecond=0) + _DAY
    roles = server.signing.store.roles()
    meta = {f"{name}.json": MetaFile(role.version) for name, role in roles.items()} | dict(versions or {})
    length = snapshot_length or None
    timestamp = Timestamp(version, expires=until, snapshot_meta=MetaFile(version, length=length))
    snapshot = signed_by(Snapshot(version, expires=until, meta=meta), server.keys.signer(SNAPSHOT))
    return {
        f"{IMAGE_PATH}{version}.snapshot.json": snapshot,
        f"{IMAGE_PATH}timestamp.json": signed_by(timestamp, server.keys.signer(TIMESTAMP)),
    }


def signed_by(role: Signed, *signers: Signer) -> bytes:
    """The file of a role."""
    metadata: Metadata[Any] = Metadata(role)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def new_director(server: UpdateServer) -> Director:
    """A new director, whose key the offline root names instead of the stolen one; it signs for all devices anew."""
    root, signer = _with_new_key(server.director.root, "targets", "snapshot", "timestamp")
    root_file = signed_by(root, server.keys.signer(DIRECTOR_ROOT))
    director = Director(server.keys_folder.parent / "repository", root=root_file, signer=signer)
    director.refresh()

    async def answer(path: str, send: Send) -> None:
        await send_body(send, director.metadata("camera-1", path.removeprefix(DIRECTOR_PATH)))

    server.line.answers[DIRECTOR_PATH] = answer
    return director


def new_image_keys(server: UpdateServer) -> dict[str, bytes]:
    """New keys of snapshot and timestamp instead of the stolen ones: a root, and what they sign, version 1 again."""
    root, signer = _with_new_key(server.images.root, "snapshot", "timestamp")
    until = dt.datetime.now(dt.UTC).replace(microsecond=0) + _DAY
    meta = {f"{name}.json": MetaFile(role.version) for name, role in server.signing.store.roles().items()}
    return {
        f"{IMAGE_PATH}{root.version}.root.json": signed_by(root, server.keys.signer(IMAGE_ROOT)),
        f"{IMAGE_PATH}1.snapshot.json": signed_by(Snapshot(1, expires=until, meta=meta), signer),
        f"{IMAGE_PATH}timestamp.json": signed_by(Timestamp(1, expires=until, snapshot_meta=MetaFile(1)), signer),
    }


def _with_new_key(text: str, *roles: str) -> tuple[Root, CryptoSigner]:
    root = Metadata[Root].from_bytes(text.encode()).signed
    signer = CryptoSigner.generate_ed25519()
    for role in roles:
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(signer.public_key, role)
    root.version += 1
    return root, signer


async def send_body(send: Send, body: bytes | None) -> None:
    """An ordinary answer; 404 for None."""
    head = [(b"content-length", str(len(body or b"")).encode())]
    await send({"type": "http.response.start", "status": 200 if body is not None else 404, "headers": head})
    await send({"type": "http.response.body", "body": body or b""})


def dripping(body: bytes, *, every_s: float) -> Answer:
    """Answers with one byte at a time; within every single wait something comes."""

    async def answer(_path: str, send: Send) -> None:
        head = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for at in range(min(len(body), 600)):
            await send({"type": "http.response.body", "body": body[at : at + 1], "more_body": True})
            await asyncio.sleep(every_s)

    return answer


def endless(*, megabytes: int = 100) -> Answer:
    """Answers with more than any device should take."""

    async def answer(_path: str, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(megabytes * 16):
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})

    return answer


def gone(status: int) -> Answer:
    """Drops requests: answers with a status alone."""

    async def answer(_path: str, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    return answer
