"""What was seen of a model, from real sessions and the real monitor."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from edge_agent.monitor.monitor import Monitor
from edge_agent.outbox.outbox import Outbox
from edge_agent.runtime.slots import Slots, load
from edge_agent.serving.inference import Inference
from edge_agent.serving.request import InferenceRequest
from edge_agent.update.judgement import Seen
from edge_agent.update.seen import Sight
from tests.fakes.packages import INPUT, OUTPUT, make_package, reference_images


def test_requests_times_runs_and_classes_are_those_of_the_serving_core(tmp_path: Path) -> None:
    slots, outbox = Slots(), Outbox(tmp_path / "outbox.db", fleet="fleet", device="device")
    monitor = Monitor(outbox, tmp_path)
    inference = Inference(monitor, threads=1)
    loaded = load(make_package(tmp_path / "digits", fails_above=0.95))
    slots.install(loaded)
    images = reference_images(96)
    for begin in range(0, 96, 3):
        inference.answer(loaded, InferenceRequest("", {INPUT: images[begin : begin + 3]}))
    bright = images[:1] * 0 + 1
    with pytest.raises(Exception, match="failed on this input"):
        inference.answer(loaded, InferenceRequest("", {INPUT: bright}))
    seen = Sight(monitor.predicted)(loaded)
    assert (seen.requests, seen.failed, seen.rows) == (33, 1, 96)
    assert sum(seen.latency) == 32
    assert seen.runs[3][0] == 32
    best = loaded.backend.infer({INPUT: images})[OUTPUT].argmax(axis=1)
    assert seen.classes == {str(index): count for index, count in Counter(best.tolist()).items()}
    assert msgspec.json.decode(msgspec.json.encode(seen), type=Seen) == seen
    assert Sight()(loaded).classes == {}
    inference.close()
    slots.close()
    monitor.close()
    outbox.close()
