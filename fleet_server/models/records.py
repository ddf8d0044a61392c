"""Models and their released packages, as plain values."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from edge_agent.contract.manifest import Lineage


class ReleaseState(enum.StrEnum):
    """Where a package is on its way to the fleet."""

    PUBLISHED = "published"  # signed and stored; no rollout has finished with it
    ROLLED_OUT = "rolled-out"  # a rollout has taken it to the whole fleet
    HALTED = "halted"  # its rollout was halted
    WITHDRAWN = "withdrawn"  # an operator took it back


class PackageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One released package.

    Args:
        digest: SHA-256 of its manifest, ``manifest_bytes`` long: the name and length of the signed target.
        size_bytes: Of all its files beside the manifest.
        state_at_ms, state_reason: When and why it came into its state.
    """

    digest: str
    model: str
    version: str
    parent: str | None
    manifest_bytes: int
    size_bytes: int
    labels: tuple[str, ...]
    lineage: Lineage
    evaluation: dict[str, Any]
    published_at_ms: int
    state: ReleaseState
    state_at_ms: int
    state_reason: str


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One model: its champion (what a new device gets, and what the next version must beat) and its versions."""

    name: str
    champion: str | None
    champion_version: str | None
    versions: tuple[PackageRecord, ...]
