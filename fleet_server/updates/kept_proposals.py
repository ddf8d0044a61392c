"""Proposals on disk, one file each, with what the server knows of them. One caller at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.contract.names import check_name, check_version
from edge_agent.durable import write_durably
from fleet_server.errors import NotFound
from fleet_server.updates import approving
from fleet_server.updates.proposal import RENEWAL, Proposal

# A release that is visible stays for as long as it was not told of: its rollout is remembered here.
WAITING, REFUSED, RELEASED = "waiting", "refused", "released"


class KeptProposal(msgspec.Struct, kw_only=True):
    """A proposal that waits, was refused, or has just become visible.

    Args:
        complete_since_ms: When the last signature came; None while one is missing.
        evaluation: Of the package; ``files``: digests of what people may read of it; ``digests``: of all its files.
        refused_at_ms, refused_by: When, and the name of the token with which; as far as it is known.
        rollout: Why it shall be rolled out once it is visible, if it shall.
    """

    proposal: Proposal
    proposed_at_ms: int
    complete_since_ms: int | None = None
    evaluation: dict[str, Any] = {}
    files: dict[str, str] = {}
    digests: list[str] = []
    state: str = WAITING
    reason: str = ""
    refused_at_ms: int | None = None
    refused_by: str = ""
    rollout: str | None = None


def refusal(kept: KeptProposal) -> str:
    """That a release was refused, when, by whom and why, in words."""
    one = kept.proposal
    return approving.refusal(one.model, one.version, kept.reason, kept.refused_at_ms, kept.refused_by)


class KeptProposals:
    """``FOLDER/MODEL/VERSION.json``; the folder is made with the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __iter__(self) -> Iterator[KeptProposal]:
        return (self._read(path) for path in sorted(self._folder.glob("*/*.json")))

    def find(self, model: str, version: str) -> KeptProposal | None:
        """One, where it is here.

        Raises:
            ManifestError: There is no such name or version.
        """
        path = self._path(model, version)
        return self._read(path) if path.exists() else None

    def get(self, model: str, version: str) -> KeptProposal:
        """One.

        Raises:
            NotFound: It is not here.
        """
        found = self.find(model, version)
        if found is None:
            raise NotFound(f"{model} {version} does not wait for approval; `shoal models approvals` shows what does")
        return found

    def keep(self, kept: KeptProposal) -> None:
        """Write one down, durably."""
        path = self._path(kept.proposal.model, kept.proposal.version)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, msgspec.json.encode(kept))

    def forget(self, kept: KeptProposal) -> None:
        """Remove one."""
        self._path(kept.proposal.model, kept.proposal.version).unlink()

    def _path(self, model: str, version: str) -> Path:
        name = version if version == RENEWAL else check_version(version)
        return self._folder / check_name(model, "model") / f"{name}.json"

    def _read(self, path: Path) -> KeptProposal:
        return msgspec.json.decode(path.read_bytes(), type=KeptProposal)
