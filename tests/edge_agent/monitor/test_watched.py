"""Rows that are not looked at one by one: drawn and counted by shares, with the probabilities that they came under."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from edge_agent.contract.envelope import Envelope, Message, decode
from edge_agent.contract.messages import LabelBatch, MetricsReport, ProfileReport, SampleBatch
from edge_agent.contract.profile import count_batch
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.topics import Stream
from edge_agent.monitor import block, watched
from edge_agent.monitor.monitor import Monitor
from edge_agent.outbox.outbox import Outbox
from edge_agent.runtime.slots import load
from tests.fakes.packages import INPUT, OUTPUT, make_package, reference_images

EVERYTHING = SamplingPolicy(samples_per_minute=1e6, labels_per_minute=1e6, uniform_share=1.0)
M = TypeVar("M", bound=Message)


def sent(outbox: Outbox, stream: Stream, kind: type[M]) -> list[M]:
    waiting = outbox.pending(stream, after=0, limit=10_000)
    return [decode(bytes(decode(message.payload, Envelope).body), kind) for message in waiting]


def begun(
    tmp_path: Path, *, steady: Callable[[], float], uniform: Callable[[], float] = random.random
) -> tuple[Outbox, Monitor]:
    """A monitor, and where its reports go."""
    (tmp_path / "state").mkdir()
    outbox = Outbox(tmp_path / "outbox.db", fleet="fleet", device="device")
    return outbox, Monitor(outbox, tmp_path / "state", steady=steady, uniform=uniform)


def test_at_a_fast_pace_a_share_of_the_rows_is_counted_and_all_requests_are(tmp_path: Path) -> None:
    loaded = load(make_package(tmp_path / "package", sampling=EVERYTHING))
    outbox = Outbox(tmp_path / "fast.db", fleet="fleet", device="device")
    steady = [0.0]
    (tmp_path / "fast").mkdir()
    fast = Monitor(outbox, tmp_path / "fast", steady=lambda: steady[0])
    images = reference_images(10, seed=13)
    outputs = loaded.backend.infer({INPUT: images})
    ids = [f"r{row}" for row in range(10)]
    for _ in range(10_000):  # 20,000 rows a second, ten times what is all counted
        fast.observe_together(loaded, ids, {INPUT: images}, outputs, buckets={0: 10})
        steady[0] += 10 / 20_000
    fast.flush()
    fast.close()
    report = sent(outbox, Stream.PROFILES, ProfileReport)[0]
    (metrics,) = sent(outbox, Stream.METRICS, MetricsReport)[0].models
    outbox.close()
    assert metrics.requests == metrics.rows == 100_000
    assert 0.05 < report.rows / 100_000 < 0.3


def test_what_nobody_looked_at_is_sampled_within_the_budget_and_still_takes_labels(tmp_path: Path) -> None:
    sampling = SamplingPolicy(samples_per_minute=600.0, labels_per_minute=0.0)
    loaded = load(make_package(tmp_path / "package", sampling=sampling))
    outbox = Outbox(tmp_path / "fast.db", fleet="fleet", device="device")
    steady = [0.0]
    (tmp_path / "fast").mkdir()
    fast = Monitor(outbox, tmp_path / "fast", steady=lambda: steady[0], clock=lambda: 1_700_000_000.0 + steady[0])
    images = reference_images(1000, seed=14)
    outputs = loaded.backend.infer({INPUT: images})
    for at in range(0, 200_000, 8):  # 20,000 rows a second, of which 1,000 are counted
        row = at % 1000
        ids = [f"r{number}" for number in range(at, at + 8)]
        some = slice(row, row + 8)
        part = {OUTPUT: outputs[OUTPUT][some].copy()}
        asked = fast.observe_together(loaded, ids, {INPUT: images[some]}, part, buckets={0: 8})
        assert not asked
        steady[0] += 8 / 20_000
    for number in (199_999, 198_000, 195_003, 191_007):
        fast.feedback(loaded, f"r{number}", "3", "test")
    fast.flush()
    fast.close()
    labels = [label for batch in sent(outbox, Stream.LABELS, LabelBatch) for label in batch.labels]
    samples = [sample for batch in sent(outbox, Stream.SAMPLES, SampleBatch) for sample in batch.samples]
    outbox.close()
    best = outputs[OUTPUT].argmax(axis=1)
    assert len(labels) == 4
    for label in labels:
        number = int(label.request_id[1:])
        assert label.prediction == str(best[number % 1000])
        assert abs(label.at_ms - (1_700_000_000_000 + number / 20)) < 5
    assert 20 < len(samples) < 400  # ten seconds of ten a second, and what the bucket held
    for sample in samples:
        number = int(sample.request_id[1:])
        np.testing.assert_array_equal(sample.inputs[INPUT].array(), images[number % 1000])
        assert sample.prediction == str(best[number % 1000])
        assert 0.0 < sample.inclusion_probability <= 1.0


@pytest.mark.parametrize("change", ["another policy", "another version"])
def test_rows_that_wait_to_be_looked_at_are_drawn_with_what_they_came_under(tmp_path: Path, change: str) -> None:
    """As in a probation: rows of both wait to be looked at, and both share what chooses among them."""
    sampling = SamplingPolicy(samples_per_minute=5_000.0, labels_per_minute=0.0, uniform_share=0.5)
    versions = [load(make_package(tmp_path / v, version=v, seed=int(v), sampling=sampling)) for v in ("1", "2")]
    outbox, monitor = begun(tmp_path, steady=lambda: 5.0)
    images = reference_images(100, seed=15)
    for loaded in versions:
        outputs = loaded.backend.infer({INPUT: images})
        for begin in range(0, 100, 10):
            some, ids = slice(begin, begin + 10), [f"{loaded.manifest.version}-{begin + row}" for row in range(10)]
            part = {OUTPUT: outputs[OUTPUT][some].copy()}
            monitor.observe_together(loaded, ids, {INPUT: images[some]}, part, buckets={0: 10})
    other, row = load(make_package(tmp_path / "3", version="3", seed=3, sampling=EVERYTHING)), {INPUT: images[:1]}
    if change == "another policy":
        monitor.set_policies({"digits": SamplingPolicy(samples_per_minute=1.0, labels_per_minute=1000.0)})
    else:
        monitor.observe(other, "3-0", row, other.backend.infer(row), latency_us=1.0, group="")
    assert monitor.over_budget == 0
    monitor.flush()
    monitor.close()
    samples = [sample for batch in sent(outbox, Stream.SAMPLES, SampleBatch) for sample in batch.samples]
    outbox.close()
    earlier = [sample for sample in samples if sample.request_id[0] != "3"]
    assert {sample.request_id[0] for sample in earlier} == {"1", "2"}
    assert min(sample.inclusion_probability for sample in earlier) > 0.1, "those that the packages' own policy gives"
    assert not any(sample.label_wanted for sample in earlier), "nobody was asked"


@pytest.mark.parametrize("copied_bytes", [2048, 0])
@pytest.mark.parametrize("budget", [0.0, 1e6])
def test_requests_of_several_rows_among_those_noted_together_take_nothing_from_them(
    tmp_path: Path, budget: float, copied_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "_COPIED_BYTES", copied_bytes)
    sampling = SamplingPolicy(samples_per_minute=budget, labels_per_minute=budget, uniform_share=1.0)
    loaded = load(make_package(tmp_path / "package", sampling=sampling))
    steady = [0.0]
    outbox, monitor = begun(tmp_path, steady=lambda: steady[0])
    images = reference_images(60 * 20, seed=16)
    outputs = loaded.backend.infer({INPUT: images})
    best = [str(index) for index in outputs[OUTPUT].argmax(axis=1)]
    expected: dict[str, str] = {}
    at = 0
    for number, rows in enumerate((8, -3, 5, -1, 4, 16, -3, -2, 8, -1, 9) * 20):  # those of one request below zero
        some = slice(at, at + abs(rows))
        given, found = {INPUT: images[some]}, {OUTPUT: outputs[OUTPUT][some].copy()}
        if rows > 0:
            ids = [f"r{number}-{row}" for row in range(rows)]
            monitor.observe_together(loaded, ids, given, found, buckets={0: rows})
        else:
            monitor.observe(loaded, f"r{number}", given, found, latency_us=1.0, group="")
            ids = [f"r{number}/{row}" for row in range(-rows)] if rows < -1 else [f"r{number}"]
        expected |= dict(zip(ids, best[some], strict=True))
        at += abs(rows)
        steady[0] += 0.01
    for request_id in expected:
        monitor.feedback(loaded, request_id, "3", "test")
    monitor.flush()
    monitor.close()
    labels = [label for batch in sent(outbox, Stream.LABELS, LabelBatch) for label in batch.labels]
    report = sent(outbox, Stream.PROFILES, ProfileReport)[0]
    outbox.close()
    assert {label.request_id: label.prediction for label in labels} == expected
    assert report.rows == len(expected) == at == len(images)
    counts = count_batch(loaded.reference.features, {INPUT: images}, outputs)
    assert {name: found.bins for name, found in report.counts.items()} == {
        name: found.bins for name, found in counts.items()
    }


def test_a_group_goes_with_its_sample_though_nobody_is_asked_for_labels(tmp_path: Path) -> None:
    sampling = SamplingPolicy(samples_per_minute=1e6, labels_per_minute=0.0, uniform_share=1.0)
    loaded = load(make_package(tmp_path / "package", sampling=sampling))
    outbox, monitor = begun(tmp_path, steady=lambda: 5.0)
    image = {INPUT: reference_images(1)}
    groups = [f"specimen-{row}" for row in range(50)]
    for row, group in enumerate(groups):
        monitor.observe(loaded, f"r{row}", image, loaded.backend.infer(image), latency_us=1.0, group=group)
    monitor.flush()
    monitor.close()
    samples = [sample for batch in sent(outbox, Stream.SAMPLES, SampleBatch) for sample in batch.samples]
    outbox.close()
    assert {sample.request_id: sample.group for sample in samples} == {
        f"r{row}": group for row, group in enumerate(groups)
    }


@pytest.mark.parametrize("together", [4, 16, 32])
def test_of_large_rows_no_more_are_counted_than_the_budget_however_many_run_together(
    tmp_path: Path, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 256 bytes stand for rows of 64 KiB: 32 of them a second."""
    monkeypatch.setattr(block, "_COPIED_BYTES", 0)
    monkeypatch.setattr(watched, "_COUNTED_BYTES_PER_MINUTE", 60.0 * 32 * 256)
    monkeypatch.setattr(watched, "_BLOCK_BYTES", 8 * 256)
    loaded = load(make_package(tmp_path / "package", sampling=SamplingPolicy(labels_per_minute=0.0)))
    steady = [0.0]
    outbox, monitor = begun(tmp_path, steady=lambda: steady[0])
    images = reference_images(together)
    outputs = loaded.backend.infer({INPUT: images})
    seconds, rows_per_s = 120, 100 * together
    for run in range(seconds * 100):
        ids = [f"r{run}-{row}" for row in range(together)]
        monitor.observe_together(loaded, ids, {INPUT: images}, outputs, buckets={0: together})
        steady[0] += together / rows_per_s
    monitor.flush()
    monitor.close()
    counted = sum(report.rows for report in sent(outbox, Stream.PROFILES, ProfileReport))
    outbox.close()
    assert 10 < counted / seconds < 55


@pytest.mark.parametrize("labels", [0.0, 1e6])
@pytest.mark.parametrize("pace", [100, 20_000])
def test_answers_that_cannot_be_noted_were_requests_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, labels: float, pace: int
) -> None:
    """Whatever is wrong with them, at a pace at which all are counted or few; nobody is asked for their labels."""
    sampling = SamplingPolicy(samples_per_minute=1e6, labels_per_minute=labels, uniform_share=1.0)
    loaded = load(make_package(tmp_path / "package", sampling=sampling))
    steady = [0.0]
    outbox, monitor = begun(tmp_path, steady=lambda: steady[0])
    images = {INPUT: reference_images(10, seed=16)}
    right = loaded.backend.infer(images)
    wrong = [{OUTPUT: right[OUTPUT][:, :1]}, {OUTPUT: right[OUTPUT][:, :0]}, {OUTPUT: right[OUTPUT].astype("S4")}]
    wrong += [{OUTPUT: right[OUTPUT].astype(complex)}, {}]
    ids = [f"r{row}" for row in range(10)]
    for run in range(1000):
        steady[0] += 10 / pace
        given = wrong[run // 10 % len(wrong)] if run % 10 == 0 else right
        asked = monitor.observe_together(loaded, ids, images, given, buckets={run % 3: 10})
        assert given is right or not asked
    one = {INPUT: images[INPUT][:1]}
    for given in wrong[:-1]:
        assert not monitor.observe(loaded, "one", one, {OUTPUT: given[OUTPUT][:1]}, latency_us=20.0, group="")
    monitor.flush()
    monitor.close()
    (metrics,) = sent(outbox, Stream.METRICS, MetricsReport)[0].models
    samples = [sample for batch in sent(outbox, Stream.SAMPLES, SampleBatch) for sample in batch.samples]
    outbox.close()
    assert metrics.requests == metrics.rows == sum(metrics.latency_counts) == 10_004
    assert caplog.text.count("answers of model digits 1 could not be noted") == 104
    assert "tensor 'probabilities' is (10, 1), not (10, 10) as declared" in caplog.text
    assert samples
    assert {sample.outputs[OUTPUT].shape for sample in samples} == {(10,)}


def test_answers_to_requests_of_several_rows_are_looked_at_at_any_pace(tmp_path: Path) -> None:
    """A probation compares what versions predict; and what an answer is a part of is not kept."""
    loaded = load(make_package(tmp_path / "package"))
    steady = [0.0]
    outbox, monitor = begun(tmp_path, steady=lambda: steady[0])
    images = {INPUT: reference_images(8, seed=17)}
    outputs = loaded.backend.infer(images)
    for number in range(2000):  # 20,000 rows a second
        steady[0] += 8 / 20_000
        monitor.observe(loaded, f"r{number}", images, outputs, latency_us=100.0, group="")
    assert sum(monitor.predicted(loaded.digest).values()) == 16_000
    monitor.flush()
    monitor.close()
    rows = sum(report.rows for report in sent(outbox, Stream.PROFILES, ProfileReport))
    outbox.close()
    assert 1000 < rows < 9000  # a burst, more than 1,000 a second while the pace shows, and that many from then on


def test_as_many_rows_are_drawn_at_a_fast_pace_as_their_probabilities_say(tmp_path: Path) -> None:
    sampling = SamplingPolicy(samples_per_minute=6000.0, labels_per_minute=0.0, uniform_share=1.0)
    loaded = load(make_package(tmp_path / "package", sampling=sampling))
    steady, source = [0.0], random.Random(0)
    outbox, monitor = begun(tmp_path, steady=lambda: steady[0], uniform=source.random)
    images = {INPUT: reference_images(10, seed=18)}
    outputs = loaded.backend.infer(images)
    ids = [f"r{row}" for row in range(10)]
    for _ in range(20_000):
        steady[0] += 10 / 20_000
        monitor.observe_together(loaded, ids, images, outputs, buckets={0: 10})
    monitor.flush()
    monitor.close()
    samples = [sample for batch in sent(outbox, Stream.SAMPLES, SampleBatch) for sample in batch.samples]
    outbox.close()
    assert len(samples) > 500
    assert sum(1 / sample.inclusion_probability for sample in samples) == pytest.approx(200_000, rel=0.15)
