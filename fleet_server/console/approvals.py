"""Releases that wait for a signature, as the console shows them. Pure."""

from __future__ import annotations

import dataclasses

from fleet_server.console.badges import Badge, Tone
from fleet_server.updates import approving
from fleet_server.updates.approvals import Approval


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalView:
    """A release that waits for signatures.

    Args:
        package: Empty where only the signatures of what is released already are renewed.
        signed: Whose signatures it has; ``needed``: who has yet to sign, empty where nobody has.
        note: What else it waits for.
        missing, unsigned: How many signatures it lacks, and the names of the keys that may give them.
    """

    model: str
    version: str
    package: str
    state: Badge
    since_ms: int
    signed: str
    needed: str
    note: str
    missing: int
    unsigned: tuple[str, ...]

    @property
    def key(self) -> str:
        """Names the block in the page."""
        return f"approval-{self.model}-{self.version}"


def approval_view(one: Approval) -> ApprovalView:
    """A release that waits for signatures: an approver's, or, where it is to be made anew, the publisher's."""
    needed = approving.still_needed(one.missing, one.unsigned)
    if one.reason:
        state, note = Badge(text="waits for the publisher", tone=Tone.WARN), one.reason
    elif needed:
        state, note = Badge(text="waits for approval", tone=Tone.WARN), ""
    else:
        state = Badge(text="approved", tone=Tone.GOOD)
        note = f"It has all its signatures: {approving.PUBLISHER.replace('`', '')}."
    return ApprovalView(
        model=one.model,
        version=one.version,
        package=one.package,
        state=state,
        since_ms=one.proposed_at_ms,
        signed=approving.persons(one.signed),
        needed=needed,
        note=note,
        missing=one.missing,
        unsigned=tuple(one.unsigned),
    )
