"""The monitor: exact counts, samples that carry what they may, labels that survive, reports that are never doubled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.contract.constraint import Sensitivity
from edge_agent.contract.envelope import MAX_PAYLOAD_BYTES, Envelope, Message, decode, encode
from edge_agent.contract.errors import MalformedRequest, StorageFull, UnknownRequest
from edge_agent.contract.latency import bucket_of
from edge_agent.contract.messages import Event, EventKind, LabelBatch, MetricsReport, ProfileReport, SampleBatch
from edge_agent.contract.profile import Projection, count_batch, merge
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.topics import Stream
from edge_agent.monitor import block, outgoing, watched
from edge_agent.monitor.machine import Machine, hardware
from edge_agent.monitor.monitor import REQUESTS_FILE, Monitor
from edge_agent.monitor.predictions import prediction, predictions
from edge_agent.monitor.remembered import Remembered
from edge_agent.monitor.samples import parts
from edge_agent.outbox.outbox import Outbox
from edge_agent.runtime.slots import LoadedModel, load
from tests.fakes.packages import INPUT, OUTPUT, make_package, reference_images

EVERYTHING = SamplingPolicy(samples_per_minute=1e6, labels_per_minute=1e6, uniform_share=1.0)
M = TypeVar("M", bound=Message)


class FillingDisk:
    """A real outbox on a disk that is full when told so; the writer's side of it."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.full_for: set[Stream] = set()

    def append(self, stream: Stream, body: Message) -> int:
        if stream in self.full_for:
            raise StorageFull("no space left")
        return self._outbox.append(stream, body)

    def count_lost(self, stream: Stream, count: int = 1) -> None:
        self._outbox.count_lost(stream, count)

    def size(self) -> tuple[int, int]:
        return self._outbox.size()


@dataclasses.dataclass
class Watching:
    """A monitor with its parts and a clock that stands still."""

    monitor: Monitor
    outbox: Outbox
    disk: FillingDisk
    folder: Path
    now: float = 1_700_000_000.0

    def observe(self, loaded: LoadedModel, images: NDArray[Any], request_id: str = "r", group: str = "") -> bool:
        outputs = loaded.backend.infer({INPUT: images})
        return self.monitor.observe(loaded, request_id, {INPUT: images}, outputs, latency_us=100.0, group=group)

    def sent(self, stream: Stream, kind: type[M]) -> list[M]:
        waiting = self.outbox.pending(stream, after=0, limit=10_000)
        return [decode(bytes(decode(message.payload, Envelope).body), kind) for message in waiting]


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    outbox = Outbox(tmp_path / "outbox.db", fleet="fleet", device="device")
    disk = FillingDisk(outbox)
    clock = [1_700_000_000.0]
    monitor = Monitor(disk, tmp_path, clock=lambda: clock[0], traffic=lambda: (7, 9))
    yield Watching(monitor, outbox, disk, tmp_path)
    monitor.close()
    outbox.close()


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    return load(make_package(tmp_path / "package", sampling=EVERYTHING))


@pytest.mark.parametrize("copied_bytes", [0, 2048])
def test_counts_are_exactly_those_of_all_rows_however_they_came(
    watching: Watching, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, copied_bytes: int
) -> None:
    monkeypatch.setattr(block, "_COPIED_BYTES", copied_bytes)
    images = reference_images(900, seed=8)
    at = 0
    while at < 900:  # requests of several rows between those of one
        rows = 100 if at % 40 == 39 and at <= 800 else 1
        watching.observe(loaded, images[at : at + rows])
        at += rows
    watching.monitor.flush(1_700_000_010.0)
    (profile,) = watching.sent(Stream.PROFILES, ProfileReport)
    outputs = loaded.backend.infer({INPUT: images})
    expected = count_batch(loaded.reference.features, {INPUT: images}, outputs)
    assert profile.rows == 900
    assert (profile.from_ms, profile.until_ms) == (1_700_000_000_000, 1_700_000_010_000)
    assert {name: counts.bins for name, counts in profile.counts.items()} == {
        name: counts.bins for name, counts in expected.items()
    }
    (report,) = watching.sent(Stream.METRICS, MetricsReport)
    (metrics,) = report.models
    assert (metrics.rows, metrics.version) == (900, "1")
    assert 0 < sum(metrics.latency_counts) == metrics.requests < 900
    assert (report.machine.bytes_up, report.machine.bytes_down) == (7, 9)


def test_an_idle_device_still_reports_itself(watching: Watching) -> None:
    watching.monitor.flush()
    (report,) = watching.sent(Stream.METRICS, MetricsReport)
    assert report.models == ()
    assert (report.machine.disk_free_bytes or 0) > 0
    assert watching.sent(Stream.PROFILES, ProfileReport) == []


def test_missing_values_are_counted_as_they_came(watching: Watching, loaded: LoadedModel) -> None:
    images = reference_images(2)
    outputs = loaded.backend.infer({INPUT: images})
    images[0, 0] = np.nan
    watching.monitor.observe(loaded, "r", {INPUT: images}, outputs, latency_us=1.0, group="")
    watching.monitor.flush()
    (profile,) = watching.sent(Stream.PROFILES, ProfileReport)
    assert (profile.counts["image.mean"].nan, profile.counts["image.mean"].rows) == (1, 2)


def test_a_sample_is_the_row_with_its_answer(watching: Watching, loaded: LoadedModel) -> None:
    images = reference_images(3)
    assert watching.observe(loaded, images, "req", group="specimen-1")
    watching.monitor.flush()
    (batch,) = watching.sent(Stream.SAMPLES, SampleBatch)
    assert [sample.request_id for sample in batch.samples] == ["req/0", "req/1", "req/2"]
    outputs = loaded.backend.infer({INPUT: images})[OUTPUT]
    for row, sample in enumerate(batch.samples):
        np.testing.assert_array_equal(sample.inputs[INPUT].array(), images[row])
        np.testing.assert_array_equal(sample.outputs[OUTPUT].array(), outputs[row])
        assert sample.prediction == str(outputs[row].argmax())
        assert sample.confidence == pytest.approx(outputs[row].max())
        assert (sample.package, sample.group, sample.label_wanted) == (loaded.digest, "specimen-1", True)


@pytest.mark.parametrize("sensitivity", [Sensitivity.DEVICE_ONLY, Sensitivity.MASKED])
def test_what_may_not_leave_the_device_is_counted_but_never_sampled(
    watching: Watching, tmp_path: Path, sensitivity: Sensitivity
) -> None:
    loaded = load(make_package(tmp_path / "secret", sampling=EVERYTHING, sensitivity=sensitivity))
    images = reference_images(1)
    watching.observe(loaded, images)
    watching.monitor.flush()
    (batch,) = watching.sent(Stream.SAMPLES, SampleBatch)
    assert batch.samples[0].inputs == {}
    assert set(batch.samples[0].outputs) == {OUTPUT}
    assert images.tobytes() not in encode(batch)
    assert watching.sent(Stream.PROFILES, ProfileReport)[0].counts["image.mean"].rows == 1


def test_many_samples_are_split_into_messages_any_broker_takes(watching: Watching, loaded: LoadedModel) -> None:
    watching.observe(loaded, reference_images(900), "many")
    watching.monitor.flush()
    payloads = watching.outbox.pending(Stream.SAMPLES, after=0, limit=100)
    assert len(payloads) > 1
    assert all(len(message.payload) <= MAX_PAYLOAD_BYTES for message in payloads)
    ids = [sample.request_id for batch in watching.sent(Stream.SAMPLES, SampleBatch) for sample in batch.samples]
    assert ids == [f"many/{row}" for row in range(900)]


@pytest.mark.parametrize("stream", [Stream.SAMPLES, Stream.PROFILES, Stream.METRICS])
def test_a_full_disk_delays_a_report_but_neither_loses_nor_doubles_it(
    watching: Watching, loaded: LoadedModel, stream: Stream
) -> None:
    watching.observe(loaded, reference_images(4, seed=1), "before")
    watching.disk.full_for = {stream}
    with pytest.raises(StorageFull):
        watching.monitor.flush(1_700_000_010.0)
    watching.observe(loaded, reference_images(3, seed=2), "after")
    watching.disk.full_for = set()
    watching.monitor.flush(1_700_000_020.0)
    profiles = watching.sent(Stream.PROFILES, ProfileReport)
    total = profiles[0].counts
    for profile in profiles[1:]:
        total = merge(total, profile.counts)
    assert sum(profile.rows for profile in profiles) == 7
    assert {counts.rows for counts in total.values()} == {7}
    models = [metrics for report in watching.sent(Stream.METRICS, MetricsReport) for metrics in report.models]
    assert (sum(m.requests for m in models), sum(m.rows for m in models)) == (2, 7)
    ids = [sample.request_id for batch in watching.sent(Stream.SAMPLES, SampleBatch) for sample in batch.samples]
    assert ids == [*(f"before/{row}" for row in range(4)), *(f"after/{row}" for row in range(3))]


def test_rows_that_come_while_the_disk_refuses_a_report_are_counted_with_the_next(
    watching: Watching, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching.observe(loaded, reference_images(4, seed=1), "before")
    refuse = watching.disk.append

    def append(stream: Stream, body: Message) -> int:
        watching.observe(loaded, reference_images(3, seed=2), "meanwhile")
        return refuse(stream, body)

    watching.disk.full_for = {Stream.SAMPLES}
    with monkeypatch.context() as patch:
        patch.setattr(watching.disk, "append", append)
        with pytest.raises(StorageFull):
            watching.monitor.flush()
    watching.disk.full_for = set()
    watching.monitor.flush()
    (profile,) = watching.sent(Stream.PROFILES, ProfileReport)
    assert profile.rows == 7
    assert {counts.rows for counts in profile.counts.values()} == {7}


@pytest.mark.parametrize("rows", [1, 50])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_reported_and_may_be_labelled(
    watching: Watching, loaded: LoadedModel, rows: int, value: float
) -> None:
    outputs = {OUTPUT: np.full((rows, 10), value, np.float32)}
    watching.monitor.observe(loaded, "r", {INPUT: reference_images(rows)}, outputs, latency_us=1.0, group="")
    watching.monitor.flush()
    samples = [sample for batch in watching.sent(Stream.SAMPLES, SampleBatch) for sample in batch.samples]
    assert {(sample.confidence, sample.margin) for sample in samples} == {(0.0, 0.0)}
    (profile,) = watching.sent(Stream.PROFILES, ProfileReport)
    assert profile.counts["confidence"].nan + profile.counts["confidence"].inf == rows
    watching.monitor.feedback(loaded, "r" if rows == 1 else "r/7", "1", "operator")
    assert watching.sent(Stream.LABELS, LabelBatch)[0].labels[0].confidence == 0.0


def test_rows_too_short_for_a_feature_are_counted_as_missing_there(watching: Watching, loaded: LoadedModel) -> None:
    first = loaded.reference.features[0]
    far = msgspec.structs.replace(first, name="image.last", projection=Projection.ELEMENT, index=63)
    features = (*loaded.reference.features, far)
    counts = {**loaded.reference.counts, "image.last": loaded.reference.counts[first.name]}
    loaded.reference = msgspec.structs.replace(loaded.reference, features=features, counts=counts)
    for columns in (64, 32):  # as a model with a dynamic axis takes them
        images = reference_images(2)
        outputs = loaded.backend.infer({INPUT: images})
        watching.monitor.observe(loaded, "r", {INPUT: images[:, :columns]}, outputs, latency_us=1.0, group="")
    watching.monitor.flush()
    (profile,) = watching.sent(Stream.PROFILES, ProfileReport)
    assert (profile.counts["image.last"].missing, profile.counts["image.last"].rows) == (2, 4)
    assert (profile.counts["image.mean"].missing, profile.counts["image.mean"].rows) == (0, 4)


def test_an_answer_without_rows_is_a_request_and_nothing_more(watching: Watching, loaded: LoadedModel) -> None:
    nothing = {INPUT: reference_images(1)}, {OUTPUT: np.empty((0, 10), np.float32)}
    for _ in range(3):
        assert not watching.monitor.observe(loaded, "r", *nothing, latency_us=100.0, group="")
    watching.observe(loaded, reference_images(1))
    watching.monitor.flush()
    (report,) = watching.sent(Stream.METRICS, MetricsReport)
    assert (report.models[0].requests, report.models[0].rows) == (4, 1)


def test_an_answer_that_cannot_be_counted_keeps_no_other_from_being_reported(
    watching: Watching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(block, "_COPIED_BYTES", 0)
    silent = load(make_package(tmp_path / "silent", sampling=SamplingPolicy(samples_per_minute=0.0)))
    other = load(make_package(tmp_path / "other", name="other"))
    no_classes = {OUTPUT: np.empty((1, 0), np.float32)}
    watching.monitor.observe(silent, "r", {INPUT: reference_images(1)}, no_classes, latency_us=100.0, group="")
    watching.observe(other, reference_images(1))
    watching.observe(silent, reference_images(2))
    watching.monitor.flush()
    (report,) = watching.sent(Stream.METRICS, MetricsReport)
    assert {metrics.model: metrics.rows for metrics in report.models} == {"digits": 3, "other": 1}
    assert {metrics.model: sum(metrics.latency_counts) for metrics in report.models} == {"digits": 2, "other": 1}
    assert caplog.text.count("answers of model digits 1 could not be counted") == 1


def test_packages_replaced_long_ago_are_let_go_and_recent_ones_still_take_labels(
    watching: Watching, tmp_path: Path
) -> None:
    versions = [load(make_package(tmp_path / str(n), version=str(n), seed=n, sampling=EVERYTHING)) for n in range(12)]
    for version in versions:
        watching.observe(version, reference_images(1), f"of-{version.version}")
        watching.monitor.flush()
    watching.monitor.flush()
    assert list(watching.monitor._watched) == [version.digest for version in versions[-8:]]
    watching.monitor.feedback(versions[-1], "of-5", "1", "operator")
    watching.observe(versions[0], reference_images(1), "again")
    watching.monitor.flush()
    rows = [profile.rows for profile in watching.sent(Stream.PROFILES, ProfileReport)]
    assert rows == [1] * 13


def test_samples_that_a_full_disk_leaves_no_memory_for_are_reported_as_lost_and_others_are_not(
    watching: Watching, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching.observe(loaded, reference_images(1), "first")
    size = watching.monitor._samples._bytes
    monkeypatch.setattr(outgoing, "_WAITING_BYTES", size * 5)
    watching.observe(loaded, reference_images(8), "r")
    watching.disk.full_for = {Stream.SAMPLES}
    for _ in range(3):
        with pytest.raises(StorageFull):
            watching.monitor.flush()
    watching.disk.full_for = set()
    watching.monitor.flush()
    kept = sum(len(batch.samples) for batch in watching.sent(Stream.SAMPLES, SampleBatch))
    (event,) = watching.sent(Stream.EVENTS, Event)
    assert (event.kind, event.detail) == (EventKind.OUTBOX_DROPPED, {"samples": 9 - kept})
    assert kept >= 4


def test_many_samples_do_not_wait_for_the_next_report(
    watching: Watching, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching.observe(loaded, reference_images(1), "first")
    monkeypatch.setattr(outgoing, "_MANY_BYTES", watching.monitor._samples._bytes * 5)
    watching.monitor.relieve()
    assert watching.sent(Stream.SAMPLES, SampleBatch) == []
    watching.observe(loaded, reference_images(8), "more")
    watching.disk.full_for = {Stream.SAMPLES}
    with pytest.raises(StorageFull):
        watching.monitor.relieve()
    watching.disk.full_for = set()
    watching.monitor.relieve()
    (batch,) = watching.sent(Stream.SAMPLES, SampleBatch)
    assert [sample.request_id for sample in batch.samples] == ["first", *(f"more/{row}" for row in range(8))]
    assert watching.sent(Stream.METRICS, MetricsReport) == [], "the window goes on"
    later = Remembered(watching.folder / REQUESTS_FILE)  # as after a power cut
    found = later.find("digits", "more/3", 1_700_000_000_000)
    later.close()
    assert found is not None
    assert found.sampled, "its label is known to be for a sample"
    watching.monitor.flush()
    (report,) = watching.sent(Stream.METRICS, MetricsReport)
    assert [(model.requests, model.rows) for model in report.models] == [(2, 9)]


def test_two_versions_in_one_window_are_reported_apart(watching: Watching, loaded: LoadedModel, tmp_path: Path) -> None:
    other = load(make_package(tmp_path / "other", version="2", seed=2))
    watching.observe(loaded, reference_images(1))
    watching.observe(other, reference_images(2))
    watching.monitor.refused(other, MalformedRequest("no request"))
    watching.monitor.failed(other)
    watching.monitor.flush()
    (report,) = watching.sent(Stream.METRICS, MetricsReport)
    assert [(m.version, m.requests, m.rows, m.refused, m.failed) for m in report.models] == [
        ("1", 1, 1, 0, 0),
        ("2", 1, 2, 1, 1),
    ]


def test_a_request_whose_name_looks_like_a_row_is_no_row_of_another(watching: Watching, loaded: LoadedModel) -> None:
    told = watching.monitor.feedback
    for request_id, rows in (("a/17", 1), ("b", 1), ("b/0", 1), ("c", 2), ("c/1", 1), ("d/1", 2), ("e/", 1)):
        watching.observe(loaded, reference_images(rows), request_id)
    for request_id, row in (("a", None), ("a", 17), ("a/16", None), ("a/17", 1), ("c", None), ("c", 2), ("d/1", None)):
        with pytest.raises(UnknownRequest, match="name the row"):
            told(loaded, request_id, "3", "test", row=row)
    found = {
        ("a/17", None): "a/17/", ("a/17", 0): "a/17/", ("a/17/0", None): "a/17/", ("b", None): "b", ("b", 0): "b",
        ("b/0", None): "b/0/", ("b/0", 0): "b/0/", ("c", 1): "c/1", ("c/1", None): "c/1/", ("c/0", None): "c/0",
        ("d/1", 0): "d/1/0", ("d/1/1", None): "d/1/1", ("e/", None): "e//",
    }  # fmt: skip
    for request_id, row in found:
        assert told(loaded, request_id, "3", "test", row=row)
    watching.monitor.flush()
    labels = [label for batch in watching.sent(Stream.LABELS, LabelBatch) for label in batch.labels]
    assert [label.request_id for label in labels] == list(found.values())
    (batch,) = watching.sent(Stream.SAMPLES, SampleBatch)
    names = [sample.request_id for sample in batch.samples]
    assert names == ["a/17/", "b", "b/0/", "c/0", "c/1", "c/1/", "d/1/0", "d/1/1", "e//"], "as those of labels"


def test_a_label_carries_the_request_it_is_for(watching: Watching, loaded: LoadedModel) -> None:
    watching.observe(loaded, reference_images(1), "r1")
    assert watching.monitor.feedback(loaded, "r1", "3", "operator") is True
    (batch,) = watching.sent(Stream.LABELS, LabelBatch)
    (label,) = batch.labels
    outputs = loaded.backend.infer({INPUT: reference_images(1)})[OUTPUT]
    assert (batch.model, label.request_id, label.label, label.source) == ("digits", "r1", "3", "operator")
    assert (label.package, label.prediction) == (loaded.digest, str(outputs.argmax()))
    assert label.inclusion_probability == 1.0


def test_a_label_of_a_row_that_stays_here_is_kept_and_said_to_teach_nothing(
    watching: Watching, loaded: LoadedModel
) -> None:
    watching.monitor.set_policies({"digits": SamplingPolicy(samples_per_minute=0)})
    assert watching.observe(loaded, reference_images(1), "r1") is False
    assert watching.monitor.feedback(loaded, "r1", 3, "operator") is False
    assert watching.sent(Stream.LABELS, LabelBatch)[0].labels[0].inclusion_probability == 0.0
    watching.monitor.flush()
    assert watching.sent(Stream.SAMPLES, SampleBatch) == []


def test_the_only_row_of_a_request_may_be_named_by_its_number(watching: Watching, loaded: LoadedModel) -> None:
    watching.observe(loaded, reference_images(1), "r1")
    watching.monitor.feedback(loaded, "r1/0", "3", "operator")
    assert watching.sent(Stream.LABELS, LabelBatch)[0].labels[0].request_id == "r1"
    with pytest.raises(UnknownRequest, match="r1/1"):
        watching.monitor.feedback(loaded, "r1/1", "3", "operator")


def test_of_inputs_too_large_and_many_to_count_all_a_share_is_counted(
    watching: Watching, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are reported as answered; the counts are those of rows taken by chance."""
    monkeypatch.setattr(watched, "_COUNTED_BYTES_PER_MINUTE", 256 * 1000.0)
    monkeypatch.setattr(block, "_COPIED_BYTES", 0)
    images = reference_images(2000)
    for at in range(2000):
        watching.observe(loaded, images[at : at + 1])
    watching.monitor.flush()
    (profile,) = watching.sent(Stream.PROFILES, ProfileReport)
    (report,) = watching.sent(Stream.METRICS, MetricsReport)
    assert report.models[0].rows == 2000
    assert 0 < profile.rows < 1000
    assert {counts.rows for counts in profile.counts.values()} == {profile.rows}


def test_of_large_inputs_that_ran_together_a_share_is_counted_and_all_are_remembered(
    watching: Watching, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "_COUNTED_BYTES_PER_MINUTE", 256 * 1000.0)
    monkeypatch.setattr(block, "_COPIED_BYTES", 0)
    images = reference_images(4000)
    outputs = loaded.backend.infer({INPUT: images})[OUTPUT]
    for at in range(0, 4000, 4):
        some, ids = slice(at, at + 4), [f"r{row}" for row in range(at, at + 4)]
        watching.monitor.observe_together(loaded, ids, {INPUT: images[some]}, {OUTPUT: outputs[some]}, buckets={0: 4})
    for row in (0, 1999, 3998):
        watching.monitor.feedback(loaded, f"r{row}", "3", "test")
    watching.monitor.flush()
    (profile,) = watching.sent(Stream.PROFILES, ProfileReport)
    (report,) = watching.sent(Stream.METRICS, MetricsReport)
    assert (report.models[0].requests, report.models[0].rows, report.models[0].latency_counts[0]) == (4000,) * 3
    assert 0 < profile.rows < 2000
    assert profile.rows % 4 == 0
    labels = [label for batch in watching.sent(Stream.LABELS, LabelBatch) for label in batch.labels]
    assert [label.prediction for label in labels] == [str(outputs[row].argmax()) for row in (0, 1999, 3998)]


def test_a_policy_may_be_withdrawn(watching: Watching, loaded: LoadedModel) -> None:
    watching.observe(loaded, reference_images(1))
    watching.monitor.set_policies({"digits": SamplingPolicy(samples_per_minute=0)})
    assert watching.observe(loaded, reference_images(1)) is False
    watching.monitor.set_policies({"other": SamplingPolicy(samples_per_minute=0)})
    assert watching.observe(loaded, reference_images(1)) is True


def test_sampled_requests_are_remembered_over_a_restart_until_their_time_is_over(
    watching: Watching, loaded: LoadedModel
) -> None:
    watching.observe(loaded, reference_images(1), "sampled")
    watching.monitor.flush()
    watching.monitor.close()
    now = [watching.now]
    again = Monitor(watching.outbox, watching.folder, clock=lambda: now[0])
    again.feedback(loaded, "sampled", "1", "operator")
    assert watching.sent(Stream.LABELS, LabelBatch)[0].labels[0].inclusion_probability == 1.0
    now[0] += EVERYTHING.label_lifetime_s + 1
    with pytest.raises(UnknownRequest, match="its time for feedback is over"):
        again.feedback(loaded, "sampled", "1", "operator")
    again.flush()
    again.close()


def test_a_damaged_memory_of_requests_is_set_aside(watching: Watching, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "requests.db").write_bytes(b"this is no database" * 100)
    Monitor(watching.outbox, folder).close()
    assert len(list(folder.glob("requests.db.damaged-*"))) == 1
    assert (folder / "requests.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("rows", "classes"), [(1, 10), (3, 1), (1, 1), (50, 10), (2, 500), (5, 1)])
def test_predictions_are_the_largest_and_the_gap_to_the_second(rows: int, classes: int) -> None:
    probabilities = np.random.default_rng(rows).random((rows, classes)).astype(np.float32)
    together = predictions(probabilities)
    for index, row in enumerate(probabilities):
        found = together.row(index)
        ranked = np.sort(row)[::-1]
        assert found.best == row.argmax()
        assert prediction(probabilities[index : index + 1]) == found
        assert found.confidence == pytest.approx(float(ranked[0]))
        assert found.margin == pytest.approx(float(ranked[0] - (ranked[1] if classes > 1 else 0.0)), abs=1e-6)


def test_parts_keep_order_and_room() -> None:
    assert list(parts([1, 2, 3, 4], [5, 5, 5, 9], room_bytes=10)) == [[1, 2], [3], [4]]
    assert list(parts([], [])) == []


def test_the_machine_tells_what_it_is(tmp_path: Path) -> None:
    made_of = hardware()
    assert made_of.cpus >= 1
    assert made_of.memory_bytes > 0
    assert set(made_of.runtimes) >= {"onnxruntime", "python"}
    state = Machine(tmp_path).metrics(outbox=(3, 4), traffic=(5, 6))
    assert (state.outbox_messages, state.outbox_bytes, state.bytes_up, state.bytes_down) == (3, 4, 5, 6)
    assert (state.resident_bytes or 0) > 0


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("per_minute", "count"), [(1e6, 300), (600.0, 3000)])
def test_requests_noted_together_come_to_what_they_come_to_one_by_one(
    watching: Watching, per_minute: float, count: int, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(block, "_COPIED_BYTES", 0)
    sampling = SamplingPolicy(samples_per_minute=per_minute, labels_per_minute=per_minute, uniform_share=1.0)
    loaded = load(make_package(watching.folder / "package", sampling=sampling))
    images = reference_images(count, seed=12)
    outputs = loaded.backend.infer({INPUT: images})
    asked: set[str] = set()
    at = 0
    while at < count:
        rows = min(7 + at % 5, count - at)
        ids = [f"r{row}" for row in range(at, at + rows)]
        some = slice(at, at + rows)
        found = watching.monitor.observe_together(
            loaded,
            ids,
            {INPUT: images[some]},
            {OUTPUT: outputs[OUTPUT][some]},
            buckets={bucket_of(50.0): rows},
        )
        asked |= {ids[index] for index in found}
        at += rows
    watching.monitor.flush(1_700_000_010.0)
    (report,) = watching.sent(Stream.PROFILES, ProfileReport)
    assert report.rows == count
    expected = count_batch(loaded.reference.features, {INPUT: images}, outputs)
    assert {name: counts.bins for name, counts in report.counts.items()} == {
        name: counts.bins for name, counts in expected.items()
    }
    (metrics,) = watching.sent(Stream.METRICS, MetricsReport)[0].models
    assert (metrics.requests, metrics.rows, metrics.latency_counts[bucket_of(50.0)]) == (count, count, count)
    samples = [sample for batch in watching.sent(Stream.SAMPLES, SampleBatch) for sample in batch.samples]
    assert asked == {sample.request_id for sample in samples if sample.label_wanted} != set()
    for sample in samples:
        row = int(sample.request_id[1:])
        np.testing.assert_array_equal(sample.inputs[INPUT].array(), images[row])
    watching.monitor.feedback(loaded, f"r{count - 1}", "3", "test")
    (label,) = watching.sent(Stream.LABELS, LabelBatch)[0].labels
    assert label.prediction == str(int(outputs[OUTPUT][-1].argmax()))
