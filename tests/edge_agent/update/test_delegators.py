"""Two delegators that name one role: what one of them vouches for says nothing about what the other does."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    SuccinctRoles,
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


A_ID, B_ID, TOP_ID = (signer.public_key.keyid for signer in (A, B, TOP))
BOTH: dict[str, Key] = {A_ID: A.public_key, B_ID: B.public_key}
OF_THAT_NAME = Key.from_dict(B_ID, TOP.public_key.to_dict())
FALSE_B = CryptoSigner(TOP._private_key, cast("SSlibKey", OF_THAT_NAME))


def binned(bin_keys: list[str], threshold: int, more: dict[str, Key]) -> dict[str, bytes]:
    """Files of a repository whose model ``digits``, which A and B must sign both, has its one target in a hash bin."""
    bins = SuccinctRoles(bin_keys, threshold, 4, "digits-bins")
    rule = DelegatedRole("digits", list(BOTH), 2, terminating=True, paths=["digits/*"])
    target = TargetFile.from_data("digits/1", b"x")
    name = bins.get_role_for_target(target.path)
    metas = {f"{one}.json": MetaFile(1) for one in ("targets", "digits", name)}
    roles: dict[str, tuple[Signed, list[CryptoSigner]]] = {
        "targets": (Targets(1, expires=EXPIRES, delegations=Delegations(keys=BOTH, roles={"digits": rule})), [TOP]),
        "snapshot": (Snapshot(1, expires=EXPIRES, meta=metas), [TOP]),
        "digits": (
            Targets(1, expires=EXPIRES, delegations=Delegations(keys=BOTH | more, succinct_roles=bins)),
            [A, B],
        ),
        name: (Targets(1, expires=EXPIRES, targets={target.path: target}), [A, FALSE_B if B_ID in more else B]),
    }
    files: dict[str, bytes] = {}
    for one, (role, signers) in roles.items():
        metadata: Metadata[Any] = Metadata(role)
        for signer in signers:
            metadata.sign(signer, append=True)
        files[f"1.{one}.json"] = metadata.to_bytes()
    return files


@pytest.mark.parametrize(
    ("bins", "is_believed"),
    [
        (([A_ID, B_ID], 2, {}), True),
        (([B_ID, A_ID], 2, {}), True),
        (([A_ID, B_ID], 1, {}), False),
        (([A_ID], 1, {}), False),
        (([A_ID, B_ID], 2, {B_ID: OF_THAT_NAME}), False),
        (([A_ID, B_ID, TOP_ID], 2, {TOP_ID: TOP.public_key}), False),
    ],
    ids=["same", "other order", "fewer needed", "a key less", "another key of that name", "a key more"],
)
def test_hash_bins_of_other_keys_than_the_models_own_are_not_believed(
    shown: dict[str, bytes],
    files: ServerFiles,
    tmp_path: Path,
    bins: tuple[list[str], int, dict[str, Key]],
    *,
    is_believed: bool,
) -> None:
    """A publisher who got an approver to sign such a role once would need the approver no more."""
    shown |= binned(*bins)
    now, url, root = dt.datetime.now(dt.UTC), files.url("/diamond/"), shown["1.root.json"]
    assert client(shown, files, tmp_path).target("digits/1") is not None, "all of it is validly signed"
    for folder in (tmp_path, tmp_path / "new"):  # from the files here, and from the server
        device = TrustedClient("image", folder, url, files, root=root, now=now, same_keys=True)
        if is_believed:
            assert device.target("digits/1") is not None
        else:
            with pytest.raises(MetadataRefused, match="needs other keys, or another number of them, than digits"):
                device.target("digits/1")
