"""MQTT topics: ``fleet/v1/{fleet}/{device}/...``, from general to specific, all lowercase.

=====================  =========  ========  =================================================================
topic                  from       retained  payload
=====================  =========  ========  =================================================================
``up/{stream}``        device     no        an envelope of :mod:`edge_agent.contract.messages`
``down/ack``           server     no        ``Ack``: what the server has committed
``twin/desired``       server     yes       ``Desired``: what the device should be
``twin/reported``      device     yes       ``Reported``: what it is
``status``             device     yes       ``Status``; its last will says offline
=====================  =========  ========  =================================================================
"""

from __future__ import annotations

import dataclasses
import enum

from edge_agent.contract.errors import MessageError
from edge_agent.contract.names import is_name

ROOT = "fleet/v1"


class Stream(str, enum.Enum):
    """A numbered sequence of messages from one device; the order is that of importance, the last is dropped first."""

    EVENTS = "events"
    LABELS = "labels"
    METRICS = "metrics"
    PROFILES = "profiles"
    SAMPLES = "samples"


@dataclasses.dataclass(frozen=True)
class DeviceTopics:
    """The topics of one device. Fields given as ``+`` make a subscription pattern."""

    fleet: str
    device: str

    @property
    def base(self) -> str:
        """What all of them begin with."""
        return f"{ROOT}/{self.fleet}/{self.device}"

    def up(self, stream: Stream) -> str:
        """Where the device publishes a stream."""
        return f"{self.base}/up/{stream.value}"

    @property
    def ack(self) -> str:
        """Where the server says what it has committed."""
        return f"{self.base}/down/ack"

    @property
    def desired(self) -> str:
        """What the device should be (retained)."""
        return f"{self.base}/twin/desired"

    @property
    def reported(self) -> str:
        """What the device is (retained)."""
        return f"{self.base}/twin/reported"

    @property
    def status(self) -> str:
        """Whether the device is connected (retained, last will)."""
        return f"{self.base}/status"


def server_subscriptions(fleet: str) -> tuple[str, ...]:
    """The patterns under which a server hears all devices of a fleet."""
    every = DeviceTopics(fleet, "+")
    return (f"{every.base}/up/+", every.reported, every.status)


def parse(topic: str) -> tuple[DeviceTopics, str]:
    """The device that a topic belongs to, and the rest of the topic: ``up/metrics``, ``status``, ...

    Raises:
        MessageError: It is no topic of ours.
    """
    parts = topic.split("/", 4)
    if len(parts) != 5 or not parts[4] or "/".join(parts[:2]) != ROOT or not is_name(parts[2]) or not is_name(parts[3]):
        raise MessageError(f"topic {topic!r} is not {ROOT}/FLEET/DEVICE/...")
    return DeviceTopics(parts[2], parts[3]), parts[4]
