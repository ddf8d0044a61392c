"""The image repository's metadata, signed in the key folder: what was signed last is what the next version follows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Delegations, Signed, TargetFile, Targets

from edge_agent.contract.manifest import MANIFEST_FILE
from trainer.publish import change as changes
from trainer.publish.change import Joins, KeyChange, refuse_loss
from trainer.publish.errors import PublishRefused, SigningKeyError
from trainer.publish.first_keys import make_keys
from trainer.publish.hash_bins import model_of, role_names, targets_of, version_of
from trainer.publish.keys import (
    KeyFolder,
    approver_key,
    model_key,
    utc_now,
)
from trainer.publish.metadata_folder import (
    DIRECTOR_REPOSITORY,
    IMAGE,
    Lifetimes,
    MetadataFolder,
    name_of,
    named,
    until,
)
from trainer.publish.pending import PendingChange, read_pending
from trainer.publish.proposals import RENEWAL, Proposal
from trainer.publish.releases import Releases
from trainer.publish.settling import give_root, settle

__all__ = ["ImageSigning", "Lifetimes"]


class ImageSigning:
    """Signs the image repository.

    Args:
        keys: Where the keys are; what is signed is kept in its ``image/`` and ``director/``.
        lifetimes: None takes those that the keys were made with.
        now: Time that lifetimes begin at.
    """

    def __init__(
        self, keys: KeyFolder, *, lifetimes: Lifetimes | None = None, now: Callable[[], dt.datetime] = utc_now
    ) -> None:
        self._keys, self._now, self.store = keys, now, MetadataFolder(keys.folder)
        self._lifetimes = lifetimes or self.store.lifetimes()
        self.releases = Releases(keys, self.store, self._lifetimes, now)

    def create(
        self, models: Sequence[str], *, kind: str = "ed25519", persons: Sequence[str] = ("",), threshold: int = 1
    ) -> None:
        """Make all keys, both roots and an image repository without packages.

        Args:
            persons: Who shares the power of the offline keys; one without a name holds them alone.
            threshold: So many of them must sign roots and targets.
        Raises:
            SigningKeyError: There are keys already, or a model cannot be called so.
        """
        for model in models:
            model_key(model)
        make_keys(self._keys, self.store, self._lifetimes, self._now(), kind=kind, persons=persons, threshold=threshold)
        for model in models:
            self.add_model(model, kind=kind)

    def add_model(
        self,
        model: str,
        *,
        kind: str = "ed25519",
        approvers: Mapping[str, Key | None] | None = None,
        threshold: int | None = None,
        may_wait: bool = False,
        joins: Joins = refuse_loss,
    ) -> bool:
        """Let a key of its own sign the packages of a model. Needs the keys of the targets role.

        Args:
            approvers: Persons of whom one, by default, must sign each release besides the publisher; with the public
                key of each who made one, else one is made here.
            threshold: So many signatures a release needs: 1, with approvers 2.
            may_wait: Write the change down even where no key of the targets role is here.
            joins: Told, or asked, before it is made one with a change that waits.
        Returns:
            Whether it is in force; False where signatures of it are still missing.
        Raises:
            SigningKeyError: A key is missing, or the model is known already.
        """
        name, people = model_key(model), dict(approvers or {})
        wanted = threshold if threshold is not None else 2 if people else 1
        if not 1 <= wanted <= 1 + len(people):
            raise SigningKeyError(f"{model}: {wanted} signatures of {1 + len(people)} keys cannot be had")
        self.settle()
        change = self.change(may_wait=may_wait, joins=joins)
        targets = change.role(Targets.type)
        delegations = targets.delegations or Delegations(keys={}, roles={})
        known = delegations.roles if delegations.roles is not None else {}
        if model in known:
            raise SigningKeyError(f"{self._keys.folder}: the model {model!r} has its key already")
        public = [self._own_key(name, kind)]
        public += [self._approver(person, key, delegations, kind) for person, key in people.items()]
        rule = DelegatedRole(model, [], wanted, terminating=True, paths=[f"{model}/*/{MANIFEST_FILE}"])
        targets.delegations = Delegations(keys=delegations.keys, roles={**known, model: rule})
        for key in public:
            targets.add_key(key, model)
        change.role(model, Targets(version=1, expires=until(self._now(), self._lifetimes.targets)))
        change.sign(f"add the model {model}")
        change.save()
        return self.settle() is not None

    def add_target(self, model: str, path: str, length: int, sha256: str) -> bool:
        """Sign a package. Where the model asks for an approver too, it waits for that signature then (``releases``).

        Returns:
            False where it was signed already.
        Raises:
            PublishRefused: The version is taken by another package, the model has no key, or its keys are changing.
            SigningKeyError: A key is missing.
        """
        self.settle()
        roles = self._roles()
        if model not in roles:
            raise PublishRefused(self._unknown_model(model, roles))
        self._refuse_while_changing(model)
        wanted, version = TargetFile(length, {"sha256": sha256}, path), version_of(path)
        signed, waiting = targets_of(model, roles).get(path), self.releases.waiting.get(model, version)
        if signed is not None and signed != wanted:
            raise PublishRefused(f"{path} is signed already with other contents; give the package a new version")
        if waiting is not None and waiting.package != sha256:
            raise PublishRefused(
                f"{path} waits for approval with other contents; give the package a new version, or refuse that one: "
                f"shoal models reject {model} {version}"
            )
        if signed is not None or waiting is not None:
            return False
        self.releases.sign(Proposal(model=model, version=version, roles={}, path=path, length=length, package=sha256))
        return True

    def refresh(self) -> bool:
        """Sign anew what has lived half of its time, as far as the publisher's keys reach; gives whether any had.

        A role that needs an approver's signature too is proposed for it.
        """
        settled = self.settle() is not None
        roles, pending = self._roles(), read_pending(self._keys.folder)
        changing = pending.models() if pending is not None else set()
        stale = {model_of(name) for name in self._live(roles) if self._old(roles[name], self._lifetimes.targets)}
        renewed = False
        for model in sorted(stale - changing - {"targets"}):
            if self.releases.waiting.get(model, RENEWAL) is None:
                renewed |= self.releases.sign(Proposal(model=model, version=RENEWAL, roles={}))
        timestamp = self.store.timestamp()
        if not renewed and timestamp is not None and self._old(timestamp, self._lifetimes.snapshot):
            self._sign_snapshot(self._roles())
            return True
        return renewed or settled

    def renew(self, *, may_wait: bool = False, joins: Joins = refuse_loss) -> bool:
        """Sign roots and targets anew for a whole lifetime. Needs the offline keys.

        Returns:
            Whether that is in force; False where signatures are still missing.
        """
        self.settle()
        change = self.change(may_wait=may_wait, joins=joins)
        change.root(DIRECTOR_REPOSITORY)
        change.root(IMAGE)
        change.role(Targets.type)
        change.sign("sign the roots and targets for another lifetime")
        change.save()
        return self.settle() is not None

    def change(self, *, may_wait: bool = False, joins: Joins = refuse_loss) -> KeyChange:
        """A change of keys, begun or gone on with: draft it, ``sign`` and ``save`` it, then :meth:`settle`."""
        return KeyChange(self._keys, self.store, self._lifetimes, self._now, may_wait=may_wait, joins=joins)

    def settle(self) -> PendingChange | None:
        """Put in force the change that waits, if it has all its signatures; finish what a crash left half done.

        Returns:
            What came into force now.
        """
        return settle(self._keys, self.store, lambda: self._sign_snapshot(self._all_roles()))

    def files(self) -> dict[str, bytes]:
        """What the repository consists of now, by file name: what an upload sends."""
        timestamp = self.store.timestamp()
        if timestamp is None:
            raise SigningKeyError(f"{self.store.folder / IMAGE}: nothing was signed yet; begin with `shoal keys init`")
        names = [f"{version}.root.json" for version in range(1, self.store.root_version(IMAGE) + 1)]
        names += [f"{role.version}.{name}.json" for name, role in self._roles().items()]
        names += [f"{timestamp.snapshot_meta.version}.snapshot.json", "timestamp.json"]
        return {name: self.store.data(f"{IMAGE}/{name}") for name in names}

    def models(self) -> dict[str, list[str]]:
        """The models with a key, each with the paths of its signed packages."""
        roles = self._roles()
        return {name: sorted(targets_of(name, roles)) for name in _models(roles)}

    def expiries(self) -> dict[str, dt.datetime]:
        """When each role expires, by name; of a model with bins the first to expire; ``director-root`` too."""
        roles, found = self._roles(), dict[str, dt.datetime]()
        for name in self._live(roles):
            known = found.get(model_of(name), roles[name].expires)
            found[model_of(name)] = min(known, roles[name].expires)
        timestamp = self.store.timestamp()
        if timestamp is not None:
            found |= {"snapshot": timestamp.expires, "timestamp": timestamp.expires}
        for name, repository in (("root", IMAGE), ("director-root", DIRECTOR_REPOSITORY)):
            found[name] = self.store.root(repository).expires
        return found

    def _own_key(self, name: str, kind: str) -> Key:
        if not self._keys.path(name).exists():
            self._keys.make(name, kind=kind)
        return self._public(name)

    def _approver(self, person: str, key: Key | None, known: Delegations, kind: str) -> Key:
        """The person's key: that given, that of another model, or a new one with the root that it judges by."""
        name = approver_key(person)
        if key is not None:
            return named(key, name)
        for one in known.keys.values():
            if name_of(one, "") == name:
                return one
        found = self._own_key(name, kind)
        give_root(self.store, name)
        return found

    def _public(self, name: str) -> Key:
        return named(self._keys.signer(name).public_key, name)

    def _refuse_while_changing(self, model: str) -> None:
        pending = read_pending(self._keys.folder)
        if pending is not None and model in pending.models():
            raise PublishRefused(
                f"the keys of {model} are being changed ({'; '.join(pending.what)}), and signatures of that are "
                "missing: see `shoal keys status`"
            )

    def _unknown_model(self, model: str, roles: Mapping[str, Targets]) -> str:
        pending = read_pending(self._keys.folder)
        if pending is not None and model in pending.models():
            return f"model {model!r} has no key in force yet: signatures are missing, see `shoal keys status`"
        known = ", ".join(_models(roles)) or "none"
        return f"model {model!r} has no key here (known: {known}); `shoal keys add-model` makes one"

    def _sign_targets(self, name: str, role: Targets, key: str, roles: dict[str, Targets]) -> None:
        role.version += 1
        role.expires = until(self._now(), self._lifetimes.targets)
        self._write(f"{IMAGE}/{role.version}.{name}.json", role, key)
        roles[name] = role

    def _sign_snapshot(self, roles: Mapping[str, Targets]) -> None:
        self._snapshot({name: role.version for name, role in roles.items()})

    def _snapshot(self, versions: dict[str, int]) -> None:
        changes.sign_snapshot(self._keys, self.store, versions, self._lifetimes, self._now())

    def _roles(self) -> dict[str, Targets]:
        """Targets and each model's role as they were signed last."""
        return self.store.roles()

    def _all_roles(self) -> dict[str, Targets]:
        """Those in force, and over them those of the change that comes into force now."""
        return self.change().roles()

    def _live(self, roles: Mapping[str, Targets]) -> list[str]:
        """All roles but bins of an earlier number, which nobody reads any more."""
        known = dict(roles)
        return ["targets", *(name for model in _models(roles) for name in role_names(model, known))]

    def _write(self, file: str, signed: Signed, *names: str) -> None:
        self.store.write(file, changes.signed_bytes(signed, [self._keys.signer(name) for name in names]))

    def _old(self, role: Signed, lifetime_days: float) -> bool:
        return role.expires - self._now() < dt.timedelta(days=lifetime_days) / 2


def _models(roles: Mapping[str, Targets]) -> list[str]:
    """The models in a set of roles: whatever the targets role delegates to."""
    delegations = roles["targets"].delegations
    return sorted(delegations.roles or {}) if delegations is not None else []
