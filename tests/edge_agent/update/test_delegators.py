"""Two delegators that name one role: what one of them vouches for says nothing about what the other does."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edge_agent.contract.errors import MetadataRefused
from edge_agent.update.server_files import ServerFiles
from edge_agent.update.tuf_client import TrustedClient
from tests.edge_agent.update.attacks.thief import send_body
from tests.fakes.update_server import UpdateServer

EXPIRES = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(days=1)
TOP, A, B = (CryptoSigner.generate_ed25519() for _ in range(3))


def signed(role: Signed, signer: CryptoSigner) -> bytes:
    metadata: Metadata[Any] = Metadata(role)
    metadata.sign(signer)
    return metadata.to_bytes()


def delegating(**roles: tuple[CryptoSigner, str]) -> Targets:
    keys: dict[str, Key] = {signer.public_key.keyid: signer.public_key for signer, _ in roles.values()}
    named = {
        name: DelegatedRole(name, [signer.public_key.keyid], 1, terminating=False, paths=[paths])
        for name, (signer, paths) in roles.items()
    }
    return Targets(1, expires=EXPIRES, delegations=Delegations(keys=keys, roles=named))


def release(signer: CryptoSigner, content: bytes) -> bytes:
    """The role that both name: with a target for each of them."""
    targets = {path: TargetFile.from_data(path, content) for path in ("team-a/x", "team-b/x")}
    return signed(Targets(1, expires=EXPIRES, targets=targets), signer)


def diamond() -> dict[str, bytes]:
    """Files of a repository: targets names parent-a and parent-b, both of which name ``release`` with own keys."""
    root = Root(expires=EXPIRES)
    for role in ("root", "targets", "snapshot", "timestamp"):
        root.add_key(TOP.public_key, role)
    parents: dict[str, tuple[CryptoSigner, str]] = {"parent-a": (TOP, "team-a/*"), "parent-b": (TOP, "team-b/*")}
    roles: dict[str, Signed] = {
        "1.root": root,
        "timestamp": Timestamp(1, expires=EXPIRES, snapshot_meta=MetaFile(1)),
        "1.snapshot": Snapshot(
            1,
            expires=EXPIRES,
            meta={f"{one}.json": MetaFile(1) for one in ("targets", "parent-a", "parent-b", "release")},
        ),
        "1.targets": delegating(**parents),
        "1.parent-a": delegating(release=(A, "team-a/*")),
        "1.parent-b": delegating(release=(B, "team-b/*")),
    }
    return {f"{name}.json": signed(role, TOP) for name, role in roles.items()}


@pytest.fixture
def files(server: UpdateServer) -> Iterator[ServerFiles]:
    made = ServerFiles(server.url, "secret-1")
    yield made
    made.close()


@pytest.fixture
def shown(server: UpdateServer) -> dict[str, bytes]:
    """What the server shows from now on, by file name."""
    repository = diamond()

    async def answer(path: str, send: object) -> None:
        await send_body(send, repository.get(path.rpartition("/")[2]))  # type: ignore[arg-type]

    server.line.answers["/diamond/"] = answer
    return repository


def client(shown: dict[str, bytes], files: ServerFiles, folder: Path) -> TrustedClient:
    now = dt.datetime.now(dt.UTC)
    return TrustedClient("image", folder, files.url("/diamond/"), files, root=shown["1.root.json"], now=now)


def test_a_role_that_one_delegator_vouched_for_is_not_believed_when_another_is_asked(
    shown: dict[str, bytes], files: ServerFiles, tmp_path: Path
) -> None:
    shown["1.release.json"] = release(A, b"true")
    one = client(shown, files, tmp_path)
    assert one.target("team-a/x") is not None
    for again in (one, client(shown, files, tmp_path)):  # in memory, and from the file
        with pytest.raises(MetadataRefused, match="release was signed by 0/1 keys"):
            again.target("team-b/x")


def test_a_role_that_another_delegator_replaced_is_not_believed_by_the_first(
    shown: dict[str, bytes], files: ServerFiles, tmp_path: Path
) -> None:
    """Stock client 7.0: B's word would stand in memory as what A has vouched for."""
    shown["1.release.json"] = release(A, b"true")
    one = client(shown, files, tmp_path)
    assert one.target("team-a/x") == TargetFile.from_data("team-a/x", b"true")
    shown["1.release.json"] = release(B, b"false, and longer")
    assert one.target("team-b/x") == TargetFile.from_data("team-b/x", b"false, and longer")
    with pytest.raises(MetadataRefused, match="release was signed by 0/1 keys"):
        one.target("team-a/x")
    shown["1.release.json"] = release(A, b"true")
    assert one.target("team-a/x") == TargetFile.from_data("team-a/x", b"true")


def test_only_so_many_delegations_are_followed(shown: dict[str, bytes], files: ServerFiles, tmp_path: Path) -> None:
    names = [f"r{number}" for number in range(30)]
    for name, following in zip(names, [*names[1:], "end"], strict=True):
        shown[f"1.{name}.json"] = signed(delegating(**{following: (TOP, "*")}), TOP)
    target = TargetFile.from_data("deep", b"x")
    shown["1.end.json"] = signed(Targets(1, expires=EXPIRES, targets={"deep": target}), TOP)
    shown["1.targets.json"] = signed(delegating(r0=(TOP, "*")), TOP)
    every = {f"{name}.json": MetaFile(1) for name in ("targets", "end", *names)}
    shown["1.snapshot.json"] = signed(Snapshot(1, expires=EXPIRES, meta=every), TOP)
    assert client(shown, files, tmp_path).target("deep") is None
    assert len(list(tmp_path.glob("r*.json"))) < 20
