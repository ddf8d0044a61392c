from __future__ import annotations

import pytest

from edge_agent.contract.topics import DeviceTopics, Stream
from fleet_server.broker.rules import SERVER_USER, TopicRules

RULES = TopicRules("reef", SERVER_USER)
OWN = DeviceTopics("reef", "d1")


@pytest.mark.parametrize("topic", [OWN.reported, OWN.status, *(OWN.up(stream) for stream in Stream)])
def test_a_device_publishes_under_its_own_name(topic: str) -> None:
    assert RULES.may_publish("d1", topic)
    assert not RULES.may_publish("d2", topic)
    assert RULES.may_publish(SERVER_USER, topic)


@pytest.mark.parametrize(
    "topic",
    [
        OWN.ack,
        OWN.desired,
        f"{OWN.base}/up/else",
        f"{OWN.base}/up/events/more",
        f"{OWN.base}/up/",
        DeviceTopics("atoll", "d1").status,
        "fleet/v1/reef/d1",
        "$SYS/broker",
    ],
)
def test_a_device_publishes_nothing_else(topic: str) -> None:
    assert not RULES.may_publish("d1", topic)


def test_a_device_subscribes_to_its_own_word_only() -> None:
    assert all(RULES.may_subscribe("d1", pattern) for pattern in (OWN.ack, OWN.desired, f"{OWN.base}/down/+"))
    others = ("#", "+/#", "fleet/#", f"{OWN.base}/#", "fleet/v1/reef/+/down/ack", DeviceTopics("reef", "d2").desired)
    assert not any(RULES.may_subscribe("d1", pattern) for pattern in others)
    assert all(RULES.may_subscribe(SERVER_USER, pattern) for pattern in others)


@pytest.mark.parametrize("user", ["+", "#", "d1/../d2", ""])
def test_a_user_name_that_is_a_pattern_opens_nothing(user: str) -> None:
    assert not RULES.may_publish(user, OWN.status)
    assert not RULES.may_subscribe(user, OWN.desired)
