"""What the director is asked to sign."""

from __future__ import annotations

import dataclasses

from edge_agent.contract.repository import Assignment


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """That a device should install a package.

    Args:
        target: Path as :func:`edge_agent.contract.repository.target_name` gives it.
        length, sha256: Of the package's manifest.
    """

    device: str
    target: str
    length: int
    sha256: str
    assignment: Assignment
