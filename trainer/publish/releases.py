"""Releases: signed with the publisher's key, in force at once where that is enough, else waiting for approvers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import TargetFile, Targets

from trainer.publish.change import sign_snapshot, signed_bytes
from trainer.publish.hash_bins import place, role_names, targets_of
from trainer.publish.keys import KeyFolder, model_key
from trainer.publish.metadata_folder import IMAGE, Lifetimes, MetadataFolder, name_of, until
from trainer.publish.pending import read_pending
from trainer.publish.proposals import RENEWAL, Proposal, Proposals, add_signatures, metadata_of, signatures_of


class Releases:
    """Signs releases in a key folder.

    Args:
        lifetimes, now: Of what is signed.
    """

    def __init__(
        self, keys: KeyFolder, store: MetadataFolder, lifetimes: Lifetimes, now: Callable[[], dt.datetime]
    ) -> None:
        self._keys, self._store, self._lifetimes, self._now = keys, store, lifetimes, now
        self.waiting = Proposals(keys.folder)

    def complete(self, proposal: Proposal, signatures: Mapping[str, Mapping[str, str]]) -> bool:
        """Take signatures of a release that waits; where it has enough, it is signed with snapshot and timestamp.

        Args:
            signatures: By role and key identifier.
        """
        roles = self._store.roles()
        add_signatures(proposal, roles, signatures)
        self.waiting.put(proposal)
        return self._release(proposal, roles)

    def rebase(self) -> list[Proposal]:
        """Make releases that wait anew where another one of their model came first; gives all that wait now.

        Those of models whose keys are being changed are left as they are, and are not among them.
        """
        pending = read_pending(self._keys.folder)
        changing = pending.models() if pending is not None else set()
        for proposal in self.waiting.all():
            if proposal.model in changing:
                continue
            roles = self._store.roles()
            known = roles.get(proposal.model)
            gone = known is None or proposal.path in targets_of(proposal.model, roles)
            proposed = {name: metadata_of(text, name).signed for name, text in proposal.roles.items()}
            late = any(
                one.version != _version(roles, name) + 1 or one.is_expired(self._now())
                for name, one in proposed.items()
            )
            if gone or (late and proposal.version == RENEWAL):
                self.waiting.forget(proposal.model, proposal.version)
            elif late or any(not one.signed for one in signatures_of(proposal, roles).values()):
                self.sign(proposal)
        return [proposal for proposal in self.waiting.all() if proposal.model not in changing]

    def sign(self, proposal: Proposal) -> bool:
        """Sign a release with the publisher's key; True where that is enough and it is in force."""
        roles, model = self._store.roles(), proposal.model
        if proposal.version == RENEWAL:
            changed = role_names(model, roles)
        else:
            target = TargetFile(proposal.length, {"sha256": proposal.package}, proposal.path)
            changed = place(model, roles, proposal.path, target)
        signer = self._publisher_of(model, roles)
        for name in changed:
            roles[name].version += 1
            roles[name].expires = until(self._now(), self._lifetimes.targets)
        proposal.roles = {name: signed_bytes(roles[name], [signer]).decode() for name in changed}
        proposal.begun = proposal.begun or self._now().isoformat()
        current = self._store.roles()
        if all(one.verified for one in signatures_of(proposal, current).values()):
            return self._release(proposal, current)
        self.waiting.put(proposal)
        return False

    def _release(self, proposal: Proposal, roles: Mapping[str, Targets]) -> bool:
        if not all(one.verified for one in signatures_of(proposal, roles).values()):
            return False
        versions = {name: role.version for name, role in roles.items()}
        for name, text in proposal.roles.items():
            versions[name] = metadata_of(text, name).signed.version
            self._store.write(f"{IMAGE}/{versions[name]}.{name}.json", text.encode())
        sign_snapshot(self._keys, self._store, versions, self._lifetimes, self._now())
        self.waiting.forget(proposal.model, proposal.version)
        return True

    def _publisher_of(self, model: str, roles: Mapping[str, Targets]) -> CryptoSigner:
        delegations = roles["targets"].delegations
        rule = delegations.roles[model] if delegations is not None and delegations.roles else None
        names = (
            [name_of(delegations.keys[one], model_key(model)) for one in rule.keyids] if delegations and rule else []
        )
        # Never an approver's key, though it may lie here: that signature is a person's own.
        own = next((name for name in names if not name.startswith("approvers/")), model_key(model))
        return self._keys.signer(own)


def _version(roles: Mapping[str, Targets], name: str) -> int:
    return roles[name].version if name in roles else 0
