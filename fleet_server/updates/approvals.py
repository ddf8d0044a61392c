"""Releases that wait for an approver: kept, checked and told of here, signed elsewhere, and served to no device.

The server holds no key of the image repository. It takes a proposal that the publisher has signed, shows it to
approvers, takes their signatures where they are good, and gives them to the publisher, who makes the release visible.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.metadata import TargetFile, Targets, VerificationResult

from fleet_server.clock import Clock, now_ms
from fleet_server.errors import Conflict, NotFound
from fleet_server.updates.errors import UploadRefused
from fleet_server.updates.image_repository import ImageRepository
from fleet_server.updates.image_roles import all_targets
from fleet_server.updates.kept_proposals import REFUSED, RELEASED, WAITING, KeptProposal, KeptProposals, refusal
from fleet_server.updates.proposal import RENEWAL, Proposal, check_proposal, signer_names, with_signatures

_AT_MOST = 100
_REFUSED_KEPT_MS = 30 * 86_400_000
# A publisher comes every hour. After a day without one, what has all its signatures keeps nobody from training.
_PUBLISHER_AWAY_MS = 86_400_000
_READABLE = frozenset({"manifest.json", "evaluation.json", "card.md"})


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """A release that waits for signatures, or was refused.

    Args:
        package: Digest of the package; empty where only the model's signatures are renewed.
        state: ``waiting`` or ``refused``; ``reason`` says why.
        signed, unsigned: Names of the keys that have signed, and of those that may.
        missing: Signatures that it still lacks.
        complete_since_ms: Since when it lacks none, and waits for the publisher; None where it does not.
        refused_at_ms, refused_by: When, and the name of the token with which; as far as it is known.
        evaluation: Of the package.
    """

    model: str
    version: str
    package: str
    state: str
    proposed_at_ms: int
    threshold: int
    missing: int
    signed: list[str]
    unsigned: list[str]
    complete_since_ms: int | None = None
    reason: str = ""
    refused_at_ms: int | None = None
    refused_by: str = ""
    evaluation: dict[str, Any] = {}


class ApprovalDetails(Approval, frozen=True, kw_only=True):
    """With what an approver needs to judge and to sign.

    Args:
        proposal: What is to be signed, with the signatures so far.
        shown: The metadata that the repository shows now, by file name: an approver verifies it from their own root.
    """

    proposal: Proposal
    shown: dict[str, str]


class Approvals:
    """Proposals in a folder.

    Args:
        folder: ``approvals/`` is made in it.
        images: The repository that they are releases of.
    """

    def __init__(
        self,
        folder: Path,
        images: ImageRepository,
        *,
        clock: Clock = now_ms,
        utc_now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._all = KeptProposals(folder / "approvals")
        self._images, self._clock, self._utc_now = images, clock, utc_now
        self._lock = threading.RLock()

    def propose(self, proposal: Proposal) -> Approval:
        """Take a release that the publisher has signed; the same one again takes what signatures it brings.

        Raises:
            UploadRefused: It may not follow what is shown, nobody's key has signed it, or its files are not here.
            Conflict: It was refused, or too many wait.
        """
        with self._images.held_still(), self._lock:
            before = self._all.find(proposal.model, proposal.version)
            if before is not None and before.state == REFUSED and before.proposal.package == proposal.package:
                raise Conflict(refusal(before))
            if before is None and sum(one.state == WAITING for one in self.list()) >= _AT_MOST:
                raise Conflict(f"{_AT_MOST} releases wait for approval already: approve or reject some")
            if before is not None:
                proposal = _merged(proposal, before.proposal)
            shown = self._images.roles()
            proposal, results = check_proposal(proposal, shown, self._utc_now())
            kept = KeptProposal(proposal=proposal, proposed_at_ms=self._clock())
            if before is not None and before.proposal.package == proposal.package:
                kept.proposed_at_ms, kept.rollout = before.proposed_at_ms, before.rollout
                kept.complete_since_ms = before.complete_since_ms
            self._note_complete(kept, results)
            if proposal.version != RENEWAL:
                target = TargetFile(proposal.length, {"sha256": proposal.package}, proposal.path)
                manifest, kept.evaluation, digests = self._images.package_files(proposal.path, target)
                kept.digests = sorted(digests)
                kept.files = {name: one.sha256 for name, one in manifest.files.items() if name in _READABLE}
                kept.files["manifest.json"] = proposal.package
                self._images.blobs.hold(digests)
            self._all.keep(kept)
            if before is not None and before.proposal.package != proposal.package:
                self._forget_files()
            return self._told(kept, shown)

    def list(self) -> list[Approval]:
        """All that wait, and what was refused, the newest first; what was released since is forgotten."""
        with self._lock:
            if not (kept := list(self._all)):
                return []
            roles = self._images.roles()
            shown = all_targets(roles) if roles else {}
            untold = self._images.to_announce()  # after what is shown was read: then none of it is missed
            left = []
            for one in kept:
                over = self._clock() - one.proposed_at_ms > _REFUSED_KEPT_MS if one.state == REFUSED else False
                told = one.proposal.path in shown and one.proposal.path not in untold
                if over or told or (one.proposal.version == RENEWAL and self._is_late(one, roles)):
                    self._forget(one)
                elif one.proposal.path not in shown:
                    left.append(one)
            return [self._told(one, roles) for one in sorted(left, key=lambda one: -one.proposed_at_ms)]

    def waits(self, model: str) -> bool:
        """Whether a release of a model waits for approval, or for a publisher who has not been away for long."""
        long_ago = self._clock() - _PUBLISHER_AWAY_MS
        return any(
            one.model == model
            and one.state == WAITING
            and bool(one.package)
            and (one.complete_since_ms is None or one.complete_since_ms > long_ago)
            for one in self.list()
        )

    def details(self, model: str, version: str) -> ApprovalDetails:
        """One of them, with what is to be signed.

        Raises:
            NotFound: There is none.
        """
        shown = self._shown()  # not under our lock: a release takes the repository's first, then ours
        with self._lock:
            kept = self._all.get(model, version)
            fields = msgspec.structs.asdict(self._told(kept, self._images.roles()))
            fields["evaluation"] = kept.evaluation
            return ApprovalDetails(**fields, proposal=kept.proposal, shown=shown)

    def file(self, model: str, version: str, name: str) -> Path:
        """The manifest, evaluation or card of a release that waits: what an approver reads.

        Raises:
            NotFound: There is no such release, or no such file of it for reading.
        """
        kept = self._all.get(model, version)
        path = self._images.blobs.find(kept.files.get(name, ""))
        if path is None:
            raise NotFound(f"{model} {version}: there is no {name!r} to read; there is {', '.join(sorted(kept.files))}")
        return path

    def sign(self, model: str, version: str, signatures: Mapping[str, Mapping[str, str]]) -> Approval:
        """Take an approver's signatures, by role and key identifier. Whoever brings them: only the key could make them.

        Raises:
            NotFound: No such release waits.
            UploadRefused: None is good: of another key, or over something else than what waits now.
        """
        with self._lock:
            kept = self._all.get(model, version)
            if kept.state == REFUSED:
                raise Conflict(refusal(kept))
            shown, now = self._images.roles(), self._utc_now()
            before = check_proposal(kept.proposal, shown, now)[1]
            proposal, after = check_proposal(with_signatures(kept.proposal, signatures), shown, now)
            if all(after[role].signed.keys() == before[role].signed.keys() for role in after):
                raise UploadRefused(
                    f"{model} {version}: the signature is not one that is missing: of another key, given already, or "
                    "over an earlier form; fetch it again, then approve"
                )
            kept.proposal = proposal
            self._note_complete(kept, after)
            self._all.keep(kept)
            return self._told(kept, shown)

    def reject(self, model: str, version: str, reason: str, *, by: str = "") -> Approval:
        """Refuse a release: it is not signed any more, its files are forgotten, and the publisher is told why.

        The last signature decides: who has it may show the release at any moment, and nobody here would know.

        Raises:
            NotFound: No such release waits.
            Conflict: It was refused before; or it has become visible, or has all its signatures: refusing it would take
                nothing back.
        """
        with self._images.held_still(), self._lock:
            kept, shown = self._all.get(model, version), self._images.roles()
            if shown and kept.proposal.path in all_targets(shown):
                raise Conflict(f"{model} {version} is released already; `shoal models withdraw` takes it back")
            if kept.state == REFUSED:
                raise Conflict(refusal(kept))
            told = self._told(kept, shown)
            if told.threshold and not told.missing:
                raise Conflict(
                    f"{model} {version} has all its signatures, and the publisher may have them: it is released within "
                    "the hour; `shoal models withdraw` takes it back then"
                )
            kept.state, kept.reason, kept.digests, kept.files = REFUSED, reason, [], {}
            kept.refused_at_ms, kept.refused_by = self._clock(), by
            self._all.keep(kept)
            self._forget_files()
            return self._told(kept, shown)

    def roll_out_later(self, digest: str, reason: str) -> bool:
        """Remember that a package shall be rolled out once it is released; False where it does not wait here."""
        with self._lock:
            self.list()  # what is visible by now waits no longer
            for kept in self._all:
                if kept.proposal.package == digest and kept.state == WAITING:
                    kept.rollout = reason
                    self._all.keep(kept)
                    return True
        return False

    def released(self, model: str, version: str) -> str | None:
        """A release has become visible: it waits no longer. Gives why it shall be rolled out, if it shall."""
        with self._lock:
            kept = self._all.find(model, version)
            if kept is None or kept.state == REFUSED:
                return None
            if kept.state == WAITING:  # from here on a rollout that is asked for begins at once
                kept.state = RELEASED
                self._all.keep(kept)
            return kept.rollout

    def _note_complete(self, kept: KeptProposal, results: Mapping[str, VerificationResult]) -> None:
        complete = all(one.verified for one in results.values())
        kept.complete_since_ms = (kept.complete_since_ms or self._clock()) if complete else None

    def _told(self, kept: KeptProposal, shown: Mapping[str, Targets]) -> Approval:
        proposal = kept.proposal
        results: dict[str, VerificationResult] = {}
        reason = kept.reason
        if kept.state == WAITING:
            try:
                results = check_proposal(proposal, shown, self._utc_now())[1]
            except UploadRefused as error:  # another release came first: the publisher signs this one anew
                reason = f"the publisher must sign it anew: {error}"
        last = max(results.values(), key=lambda one: one.missing, default=None)
        return Approval(
            model=proposal.model,
            version=proposal.version,
            package=proposal.package,
            state=kept.state,
            reason=reason,
            refused_at_ms=kept.refused_at_ms,
            refused_by=kept.refused_by,
            proposed_at_ms=kept.proposed_at_ms,
            threshold=last.threshold if last is not None else 0,
            missing=last.missing if last is not None else 0,
            complete_since_ms=kept.complete_since_ms if last is not None else None,
            signed=signer_names(last.signed, proposal.model) if last is not None else [],
            unsigned=signer_names(last.unsigned, proposal.model) if last is not None else [],
        )

    def _is_late(self, kept: KeptProposal, shown: Mapping[str, Targets]) -> bool:
        try:
            check_proposal(kept.proposal, shown, self._utc_now())
        except UploadRefused:
            return True
        return False

    def _shown(self) -> dict[str, str]:
        """Roots, timestamp, snapshot and all roles: an approver verifies the whole, not only this model's."""
        return {name: data.decode() for name, data in self._images.shown_files().items()}

    def _forget(self, kept: KeptProposal) -> None:
        self._all.forget(kept)
        self._forget_files()

    def _forget_files(self) -> None:
        self._images.blobs.forget_held(but={digest for one in self._all for digest in one.digests})


def _merged(new: Proposal, old: Proposal) -> Proposal:
    """Signatures that were collected already; they count only where they are over the same bytes."""
    found = {
        role: {keyid: str(one["sig"]) for one in msgspec.json.decode(text)["signatures"] for keyid in [one["keyid"]]}
        for role, text in old.roles.items()
    }
    return with_signatures(new, found)
