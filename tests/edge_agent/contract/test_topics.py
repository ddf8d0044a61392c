from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.errors import MessageError
from edge_agent.contract.names import is_name
from edge_agent.contract.topics import DeviceTopics, Stream, parse, server_subscriptions
from tests.edge_agent.contract.strategies import fast, names


def test_the_topics_are_these() -> None:
    topics = DeviceTopics("harbour", "crane-3")
    assert topics.up(Stream.METRICS) == "fleet/v1/harbour/crane-3/up/metrics"
    assert topics.ack == "fleet/v1/harbour/crane-3/down/ack"
    assert topics.desired == "fleet/v1/harbour/crane-3/twin/desired"
    assert topics.reported == "fleet/v1/harbour/crane-3/twin/reported"
    assert topics.status == "fleet/v1/harbour/crane-3/status"
    assert server_subscriptions("harbour") == (
        "fleet/v1/harbour/+/up/+",
        "fleet/v1/harbour/+/twin/reported",
        "fleet/v1/harbour/+/status",
    )


@fast
@given(names, names, st.sampled_from(Stream))
def test_a_topic_tells_its_device(fleet: str, device: str, stream: Stream) -> None:
    topics = DeviceTopics(fleet, device)
    assert parse(topics.up(stream)) == (topics, f"up/{stream.value}")
    assert parse(topics.status) == (topics, "status")


@pytest.mark.parametrize(
    "topic",
    [
        "", "fleet/v1", "fleet/v1/a/b", "fleet/v1/a/b/", "fleet/v2/a/b/status", "fleet/v1//b/status",
        "fleet/v1/a/b\n/status", "fleet/v1/a/+/status", "fleet/v1/A/b/status", "/fleet/v1/a/b/status",
        "other/v1/a/b/status",
    ],
)  # fmt: skip
def test_what_is_no_topic_of_ours_is_refused(topic: str) -> None:
    with pytest.raises(MessageError, match="is not fleet/v1/FLEET/DEVICE"):
        parse(topic)


@pytest.mark.parametrize("name", ["a", "0", "crane-3", "a_b", "x" * 63])
def test_names_that_are_allowed(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize("name", ["", "-a", "a-", "_a", "A", "a.b", "a b", "a/b", "ä", "+", "#", "x" * 64, "a\n"])
def test_names_that_are_not_allowed(name: str) -> None:
    assert not is_name(name)
