"""What the server knows of a device, as plain values for the API, the console and the rollouts."""

from __future__ import annotations

from typing import Any

import msgspec

from edge_agent.contract.messages import DesiredModel, Hardware, ReportedModel
from edge_agent.contract.sampling import SamplingPolicy


class DeviceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One device.

    Args:
        online: Whether it is connected to the broker, by its last status message.
        last_seen_ms: When anything last came from it, by the server's clock.
        desired_revision, reported_revision: Equal once the device has acted on its newest desired state.
        desired, reported: By model name.
    """

    name: str
    enrolled_at_ms: int
    revoked: bool
    online: bool
    online_changed_at_ms: int | None
    last_seen_ms: int | None
    agent_version: str | None
    started_at_ms: int | None
    api: str | None
    hardware: Hardware
    desired_revision: int
    reported_revision: int
    report_interval_s: float | None
    desired: dict[str, DesiredModel]
    reported: dict[str, ReportedModel]
    sampling: dict[str, SamplingPolicy]


class EventRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a device: ``at_ms`` by its own clock, ``received_at_ms`` by the server's."""

    id: int
    device: str
    at_ms: int
    received_at_ms: int
    kind: str
    model: str
    package: str
    reason: str
    detail: dict[str, Any]
