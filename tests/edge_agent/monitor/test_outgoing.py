from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from edge_agent.contract.envelope import Envelope, decode
from edge_agent.contract.messages import Event, EventKind, Sample, SampleReason
from edge_agent.contract.tensors import Tensor
from edge_agent.contract.topics import Stream
from edge_agent.monitor.outgoing import WaitingSamples
from edge_agent.monitor.samples import ROOM_BYTES
from edge_agent.outbox.outbox import Outbox


def sample(elements: int) -> Sample:
    return Sample(
        request_id="r",
        package="0" * 64,
        at_ms=0,
        reason=SampleReason.UNIFORM,
        inclusion_probability=1.0,
        prediction="1",
        confidence=0.5,
        margin=0.1,
        inputs={"x": Tensor.of(np.zeros(elements, np.uint8))},
        outputs={},
    )


def test_samples_too_large_for_a_message_are_counted_each_and_told_once_for_a_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = WaitingSamples()
    outbox = Outbox(tmp_path / "outbox.db", fleet="reef", device="d1", report_interval_s=0.0)
    with caplog.at_level(logging.WARNING):
        for model in ("camera", "camera", "thermal", "camera"):
            waiting.keep(model, sample(ROOM_BYTES))
        waiting.keep("camera", sample(10))
        waiting.send(outbox)
    assert [record.getMessage().split()[3] for record in caplog.records if record.name.endswith("outgoing")] == [
        "camera",
        "thermal",
    ]
    assert len(outbox.pending(Stream.SAMPLES, after=0, limit=9)) == 1
    [dropped] = outbox.pending(Stream.EVENTS, after=0, limit=9)
    told = decode(bytes(decode(dropped.payload, Envelope).body), Event)
    assert (told.kind, told.detail) == (EventKind.OUTBOX_DROPPED, {"samples": 4})
    outbox.close()
