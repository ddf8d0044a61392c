"""Whether uploaded metadata may follow what the image repository shows now: the TUF client's rules, and a few of ours.

Pure: bytes in, verified roles out.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping

from tuf.api.exceptions import EqualVersionNumberError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from edge_agent.contract.errors import ManifestError
from edge_agent.contract.repository import parse_target
from fleet_server.updates.errors import UploadRefused

TIMESTAMP_FILE = "timestamp.json"
_IsShown = Callable[[str, bytes], bool]
_EVER = dt.datetime.min.replace(tzinfo=dt.UTC)
# Each bin is 140 bytes in the snapshot, of which devices read a megabyte at most.
_BIN_BITS = 12


@dataclasses.dataclass(frozen=True)
class VerifiedUpload:
    """What may be made visible.

    Args:
        files: Bytes by file name, in the order they must be written: what a file names comes before it.
        targets: Every target of the repository by its path.
    """

    files: dict[str, bytes]
    targets: dict[str, TargetFile]


def verify_upload(
    files: Mapping[str, bytes], stored: Callable[[str], bytes | None], *, root: bytes, now: dt.datetime
) -> VerifiedUpload | None:
    """Check an upload as a device would that has seen everything stored so far.

    Args:
        stored: Gives a file that the repository shows now, by name.
        root: The repository's trust anchor.
    Returns:
        What to write, or None where the upload is what is shown already.
    Raises:
        UploadRefused: A signature, version, expiry or path is wrong, or a file is missing.
    """
    if TIMESTAMP_FILE in files and files[TIMESTAMP_FILE] == stored(TIMESTAMP_FILE):
        return None
    try:
        return _verified(files, stored, root, now)
    except (RepositoryError, ValueError) as error:
        raise UploadRefused(f"the metadata is not accepted: {error}") from error


def _verified(
    files: Mapping[str, bytes], stored: Callable[[str], bytes | None], root: bytes, now: dt.datetime
) -> VerifiedUpload:
    trusted = TrustedMetadataSet(root, EnvelopeType.METADATA)
    trusted.reference_time = now
    written: dict[str, bytes] = {}

    def take(name: str) -> bytes:
        known = stored(name)
        data = files.get(name, known)
        if data is None:
            raise UploadRefused(f"the upload lacks {name}")
        written[name] = data
        return data

    while (name := f"{trusted.root.version + 1}.root.json") in files or stored(name) is not None:
        trusted.update_root(take(name))
    _load_shown(trusted, stored)
    if TIMESTAMP_FILE not in files:
        raise UploadRefused(f"the upload lacks {TIMESTAMP_FILE}")
    try:
        trusted.update_timestamp(files[TIMESTAMP_FILE])
    except EqualVersionNumberError as error:
        raise UploadRefused(
            f"{TIMESTAMP_FILE}: version {trusted.timestamp.version} is shown already, with other bytes"
        ) from error
    _load_shown_snapshot(trusted, stored)
    trusted.update_snapshot(take(f"{trusted.timestamp.snapshot_meta.version}.snapshot.json"))
    targets = _roles(trusted, take, lambda name, data: stored(name) == data)
    written[TIMESTAMP_FILE] = files[TIMESTAMP_FILE]
    return VerifiedUpload(files=written, targets=targets)


def _load_shown(trusted: TrustedMetadataSet, stored: Callable[[str], bytes | None]) -> None:
    """What is shown now is what a rollback is measured by; its own expiry does not matter."""
    data = stored(TIMESTAMP_FILE)
    if data is None:
        return
    try:
        trusted.update_timestamp(data)
    except ExpiredMetadataError:
        return
    except RepositoryError:
        # The keys were rotated since: TUF forgets timestamp and snapshot then (5.3.11, fast-forward recovery).
        return


def _load_shown_snapshot(trusted: TrustedMetadataSet, stored: Callable[[str], bytes | None]) -> None:
    shown = stored(TIMESTAMP_FILE)
    if shown is None:
        return
    version = Metadata[Timestamp].from_bytes(shown).signed.snapshot_meta.version
    data = stored(f"{version}.snapshot.json")
    if data is None:
        return
    try:
        trusted.update_snapshot(data, trusted=True)
    except RepositoryError:
        # Expired, or not the one that the new timestamp names: loaded all the same, as the one not to go back from.
        return


def _roles(trusted: TrustedMetadataSet, take: Callable[[str], bytes], is_shown: _IsShown) -> dict[str, TargetFile]:
    roles = reached(_loader(trusted, take, is_shown))
    for file in trusted.snapshot.meta:
        role = file.removesuffix(".json")
        # Bins of an earlier number stay in the snapshot, as they must (TUF, 5.5.5), and mean nothing any more.
        if role not in roles and _bins(roles.get(role.rpartition("-bins-")[0])) is None:
            raise UploadRefused(f"role {role!r} is in the snapshot, but the targets role does not delegate to it")
    return all_targets(roles)


def _loader(
    trusted: TrustedMetadataSet, take: Callable[[str], bytes], is_shown: _IsShown
) -> Callable[[str, str], Targets]:
    """Gives verified roles.

    A model's role that is shown already may have expired: no device believes it, and its approver is to renew it. Were
    it refused here, that one model would keep all others from being published, and its renewal from being signed.
    """
    meta, now = trusted.snapshot.meta, trusted.reference_time

    def load(role: str, delegator: str) -> Targets:
        if f"{role}.json" not in meta:
            raise UploadRefused(f"the snapshot lacks the role {role!r}, to which {delegator!r} delegates")
        name = f"{meta[f'{role}.json'].version}.{role}.json"
        data = take(name)
        # Timestamp and snapshot were held against the true time when the targets role was loaded.
        trusted.reference_time = _EVER if delegator != Root.type and is_shown(name, data) else now
        try:
            return trusted.update_delegated_targets(data, role, delegator)
        finally:
            trusted.reference_time = now

    return load


def reached(load: Callable[[str, str], Targets]) -> dict[str, Targets]:
    """The top-level targets, each model's role, and its hash bins, by name.

    Args:
        load: Gives a role, by its name and its delegator's; it must verify what needs to be.
    Raises:
        UploadRefused: A role delegates to what it may not.
    """
    targets = load(Targets.type, Root.type)
    roles = {Targets.type: targets}
    if targets.delegations is not None and targets.delegations.succinct_roles is not None:
        raise UploadRefused("the targets role must name each model's role, not bins of its own")
    for model, rule in _delegated(targets):
        roles[model] = load(model, Targets.type)
        bins = _bins_like(model, roles[model].delegations, rule, targets.delegations)
        for name in bins.get_roles() if bins is not None else ():
            roles[name] = load(name, model)
            if roles[name].delegations is not None:
                raise UploadRefused(f"role {name!r} is a bin, and must not delegate")
    return roles


def _bins_like(
    model: str, delegations: Delegations | None, rule: DelegatedRole, known: Delegations | None
) -> SuccinctRoles | None:
    """A model's bins, which need as many signatures of the very same keys as the model itself.

    Else whoever signs one release with the publisher would hand all later ones to whom the publisher likes.
    """
    if delegations is None:
        return None
    bins = delegations.succinct_roles
    if bins is None or bins.name_prefix != f"{model}-bins" or bins.bit_length > _BIN_BITS:
        raise UploadRefused(f"role {model!r} may delegate to bins {model}-bins-... only, at most 2**{_BIN_BITS}")
    # An identifier may stand for any key (TUF, 4.2): what it stands for must be the same, too.
    others = known.keys if known is not None else {}
    same_keys = all(delegations.keys.get(keyid) == others.get(keyid) for keyid in rule.keyids)
    if set(bins.keyids) != set(rule.keyids) or bins.threshold != rule.threshold or not same_keys:
        raise UploadRefused(f"the bins of {model!r} need other keys, or another number of them, than the model does")
    return bins


def all_targets(roles: Mapping[str, Targets]) -> dict[str, TargetFile]:
    """Every target that the roles may sign, by its path.

    Raises:
        UploadRefused: One has signed what it may not, two have signed the same, or a path is none of ours.
    """
    found: dict[str, TargetFile] = {}
    for name, targets, allowed in _signing(roles):
        signed = _targets_of(name, targets, allowed)
        # Devices believe the first role that they come to: a second one would say what nobody looks at.
        if both := found.keys() & signed.keys():
            raise UploadRefused(f"role {name!r} signs {min(both)!r}, which another role signs already")
        found |= signed
    return found


def _signing(roles: Mapping[str, Targets]) -> Iterator[tuple[str, Targets, Callable[[str], bool] | None]]:
    """Each role that may sign packages, and which."""
    yield Targets.type, roles[Targets.type], None
    for model, rule in _delegated(roles[Targets.type]):
        yield model, roles[model], rule.is_delegated_path
        if (bins := _bins(roles[model])) is not None:
            for name in bins.get_roles():
                yield name, roles[name], _in_bin(bins, name, rule)


def _in_bin(bins: SuccinctRoles, name: str, rule: DelegatedRole) -> Callable[[str], bool]:
    return lambda path: rule.is_delegated_path(path) and bins.get_role_for_target(path) == name


def _bins(role: Targets | None) -> SuccinctRoles | None:
    return role.delegations.succinct_roles if role is not None and role.delegations is not None else None


def _delegated(role: Targets) -> Iterable[tuple[str, DelegatedRole]]:
    return ((role.delegations.roles if role.delegations is not None else None) or {}).items()


def _targets_of(role: str, targets: Targets, allowed: Callable[[str], bool] | None) -> dict[str, TargetFile]:
    for path, target in targets.targets.items():
        try:
            parse_target(path)
        except ManifestError as error:
            raise UploadRefused(f"role {role!r}: {error}") from error
        if allowed is not None and not allowed(path):
            raise UploadRefused(f"role {role!r} may not sign {path!r}: another model's key is needed")
        if "sha256" not in target.hashes:
            raise UploadRefused(f"role {role!r}: target {path!r} has no SHA-256")
    return dict(targets.targets)


def shown_roles(stored: Callable[[str], bytes | None]) -> dict[str, Targets]:
    """The roles that the repository shows now, by name; its own files are not verified again."""
    meta = _shown_snapshot(stored)
    if f"{Targets.type}.json" not in meta:
        return {}

    def load(role: str, _delegator: str) -> Targets:
        file = f"{role}.json"
        data = stored(f"{meta[file].version}.{file}") if file in meta else None
        return Metadata[Targets].from_bytes(data).signed if data is not None else _nothing()

    return reached(load)


def _shown_snapshot(stored: Callable[[str], bytes | None]) -> dict[str, MetaFile]:
    """What the snapshot that the repository shows now says of each role's file."""
    timestamp = stored(TIMESTAMP_FILE)
    if timestamp is None:
        return {}
    version = Metadata[Timestamp].from_bytes(timestamp).signed.snapshot_meta.version
    snapshot = stored(f"{version}.snapshot.json")
    return dict(Metadata[Snapshot].from_bytes(snapshot).signed.meta) if snapshot else {}


def shown_names(stored: Callable[[str], bytes | None]) -> list[str]:
    """The names of the metadata files that are shown now, without the roots."""
    timestamp = stored(TIMESTAMP_FILE)
    if timestamp is None:
        return []
    version = Metadata[Timestamp].from_bytes(timestamp).signed.snapshot_meta.version
    files = (f"{meta.version}.{file}" for file, meta in _shown_snapshot(stored).items())
    return [TIMESTAMP_FILE, f"{version}.snapshot.json", *files]


def shown_targets(stored: Callable[[str], bytes | None]) -> dict[str, TargetFile]:
    """The targets that the repository shows now."""
    roles = shown_roles(stored)
    return all_targets(roles) if roles else {}


def verify_shown(stored: Callable[[str], bytes | None], *, root: bytes, now: dt.datetime) -> dict[str, Targets]:
    """The roles of a repository, verified from a root that whoever asks trusts: what an approver judges by.

    Raises:
        UploadRefused: They are not signed as that root and its successors ask for, or root, timestamp, snapshot or
            targets have expired.
    """
    trusted = TrustedMetadataSet(root, EnvelopeType.METADATA)
    trusted.reference_time = now

    def take(name: str) -> bytes:
        data = stored(name)
        if data is None:
            raise UploadRefused(f"the server does not give {name}")
        return data

    try:
        while (data := stored(f"{trusted.root.version + 1}.root.json")) is not None:
            trusted.update_root(data)
        trusted.update_timestamp(take(TIMESTAMP_FILE))
        trusted.update_snapshot(take(f"{trusted.timestamp.snapshot_meta.version}.snapshot.json"))
        return reached(_loader(trusted, take, lambda *_: True))
    except (RepositoryError, ValueError) as error:
        raise UploadRefused(f"the server's metadata is not to be trusted: {error}") from error


def _nothing() -> Targets:
    return Targets(version=1)
