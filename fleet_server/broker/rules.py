"""Who may publish and subscribe where. Pure; the same rules stand in packaging's mosquitto ACL."""

from __future__ import annotations

import dataclasses

from edge_agent.contract.topics import DeviceTopics, Stream

SERVER_USER = "$server"  # never a device's: `$` cannot stand in a name


@dataclasses.dataclass(frozen=True)
class TopicRules:
    """The rules of one fleet.

    Args:
        server: The user who may do everything.
    """

    fleet: str
    server: str

    def may_publish(self, user: str, topic: str) -> bool:
        """A device publishes its own streams, its reported state and its status, nothing else."""
        topics = DeviceTopics(self.fleet, user)
        own = {topics.reported, topics.status, *(topics.up(stream) for stream in Stream)}
        return user == self.server or topic in own

    def may_subscribe(self, user: str, pattern: str) -> bool:
        """A device hears what is said to it and its desired state, nothing else."""
        topics = DeviceTopics(self.fleet, user)
        return user == self.server or pattern in {topics.ack, topics.desired, f"{topics.base}/down/+"}
