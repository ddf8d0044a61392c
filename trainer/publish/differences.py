"""What a pending change changes, read from the metadata itself: the words in the file could say anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Role, Root, Signed, Targets

from edge_agent.contract.printable import printable
from trainer.publish.hash_bins import version_of
from trainer.publish.metadata_folder import MetadataFolder, name_of
from trainer.publish.pending import PendingChange, default_name, metadata_in, role_of

_SHOWN_DIGITS = 12
_SHOWN_VERSIONS = 8


def differences(change: PendingChange, store: MetadataFolder) -> list[str]:
    """Everything that the files of a change say otherwise than what is in force, a line each."""
    roles = store.roles()
    lines: list[str] = []
    for file in sorted(change.files):
        new = metadata_in(change, file).signed
        repository, role = file.partition("/")[0], role_of(file)
        lines += [f"{file}: {line}" for line in _of(new, store.root(repository), roles.get(role), file)]
    return [printable(line) for line in lines]


def _of(new: Signed, root: Root, before: Targets | None, file: str) -> Iterator[str]:
    yield f"version {new.version}, believed until {new.expires:%Y-%m-%d}"
    if isinstance(new, Root):
        for role in new.roles:
            yield from _keys(role, (root.roles.get(role), root.keys), (new.roles[role], new.keys), default_name(file))
        if new.consistent_snapshot != root.consistent_snapshot:
            yield f"consistent snapshots: {new.consistent_snapshot}"
    elif isinstance(new, Targets):
        yield from _models(new, before)
        yield from _bins(new, before, role_of(file))
        yield from _packages(new, before)


def _models(new: Targets, before: Targets | None) -> Iterator[str]:
    old_rules, old_keys = _rules(before)
    rules, keys = _rules(new)
    for model in sorted(old_rules.keys() - rules.keys()):
        yield f"the model {model} is not believed any more"
    for model, rule in rules.items():
        known = old_rules.get(model)
        if known is None:
            yield f"the model {model} is new"
        if known is None or (known.paths, known.path_hash_prefixes) != (rule.paths, rule.path_hash_prefixes):
            said = rule.paths or [f"whatever has a hash of {one or 'any'}" for one in rule.path_hash_prefixes or ()]
            yield f"{model} may sign {', '.join(said)}"
        yield from _keys(model, (known, old_keys), (rule, keys), f"publisher/{model}")


def _bins(new: Targets, before: Targets | None, role: str) -> Iterator[str]:
    """Who may sign packages in a role's place: bins have keys and a threshold of their own."""
    known = before.delegations if before is not None else None
    if new.delegations is None or (bins := new.delegations.succinct_roles) is None:
        return
    old = known.succinct_roles if known is not None else None
    if old is None or (old.name_prefix, old.bit_length) != (bins.name_prefix, bins.bit_length):
        yield f"{role} lets {1 << bins.bit_length} bins {bins.name_prefix}-... sign its packages"
    old_keys = known.keys if known is not None else {}
    yield from _keys(f"{bins.name_prefix}-...", (old, old_keys), (bins, new.delegations.keys), f"publisher/{role}")


def _rules(role: Targets | None) -> tuple[Mapping[str, DelegatedRole], Mapping[str, Key]]:
    delegations = role.delegations if role is not None else None
    if delegations is None or delegations.roles is None:
        return {}, {}
    return delegations.roles, delegations.keys


def _keys(
    role: str, old: tuple[Role | None, Mapping[str, Key]], new: tuple[Role, Mapping[str, Key]], default: str
) -> Iterator[str]:
    before, after = set(old[0].keyids if old[0] is not None else ()), set(new[0].keyids)
    yield from (f"{role} loses the key {_named(old[1], keyid, default)}" for keyid in sorted(before - after))
    yield from (f"{role} gets the key {_named(new[1], keyid, default)}" for keyid in sorted(after - before))
    for keyid in sorted(before & after):
        if (was := _named(old[1], keyid, default)) != (called := _named(new[1], keyid, default)):
            yield f"{role}: the key {was} is called {called} from then on"
    threshold = old[0].threshold if old[0] is not None else None
    if threshold != new[0].threshold:
        was = f", until now {threshold}" if threshold is not None else ""
        yield f"{role} needs {new[0].threshold} signatures of {len(after)} keys{was}"


def _named(keys: Mapping[str, Key], keyid: str, default: str) -> str:
    return f"{name_of(keys[keyid], default)} ({keyid[:_SHOWN_DIGITS]})"


def _packages(new: Targets, before: Targets | None) -> Iterator[str]:
    known = before.targets if before is not None else {}
    added = [path for path, target in new.targets.items() if known.get(path) != target]
    if added:
        yield f"signs {_listed(added)}"
    if gone := known.keys() - new.targets.keys():
        yield f"signs no longer {_listed(gone)}"


def _listed(paths: Iterable[str]) -> str:
    versions = sorted(map(version_of, paths))
    more = len(versions) - _SHOWN_VERSIONS
    return ", ".join(versions[:_SHOWN_VERSIONS]) + (f" and {more} more" if more > 0 else "")
