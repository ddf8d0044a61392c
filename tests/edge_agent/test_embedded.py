"""A package inside a program: the same checks, counts, samples and labels as in the agent, and no server."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_agent
from edge_agent import load
from edge_agent.agent import Agent
from edge_agent.config import AgentConfig, ApiSettings
from edge_agent.contract.envelope import Envelope, Message, decode
from edge_agent.contract.errors import (
    ConfigurationError,
    DigestMismatch,
    MalformedRequest,
    ModelFailed,
    ModelUnavailable,
    SelfTestFailed,
    SignatureMismatch,
    UnknownRequest,
    Unsupported,
)
from edge_agent.contract.messages import LabelBatch, MetricsReport, ProfileReport, SampleBatch
from edge_agent.contract.topics import Stream
from edge_agent.embedded import Model
from edge_agent.outbox.outbox import Outbox
from tests.fakes.frames_device import EVERYTHING
from tests.fakes.packages import INPUT, OUTPUT, answer, make_package, model_weights, reference_images

M = TypeVar("M", bound=Message)
IMAGES = reference_images(4)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_package(tmp_path / "digits", sampling=EVERYTHING, fails_above=0.95).folder


@pytest.fixture
def model(package: Path) -> Iterator[Model]:
    with load(package) as loaded:
        yield loaded


def kept(state: Path, stream: Stream) -> list[bytes]:
    """Bodies of the messages that wait in a state folder's outbox."""
    outbox = Outbox(state / "outbox.db", fleet="none", device="none")
    try:
        waiting = outbox.pending(stream, after=0, limit=1000)
        return [bytes(decode(message.payload, Envelope).body) for message in waiting]
    finally:
        outbox.close()


def messages(state: Path, stream: Stream, kind: type[M]) -> list[M]:
    return [decode(body, kind) for body in kept(state, stream)]


def test_a_model_answers_as_its_weights_say(model: Model) -> None:
    expected = answer(*model_weights(), IMAGES)
    named, mapped = model.infer(image=IMAGES), model.infer({INPUT: IMAGES}, request_id="mine")
    np.testing.assert_allclose(named.outputs[OUTPUT], expected, rtol=1e-5)
    np.testing.assert_array_equal(named.outputs[OUTPUT], mapped.outputs[OUTPUT])
    assert (mapped.request_id, mapped.model, mapped.version) == ("mine", "digits", "1")
    assert named.package == model.package


def test_a_request_is_checked_as_the_agent_checks_it(model: Model) -> None:
    wrong = IMAGES.copy()
    wrong[2, 5] = 7.0
    with pytest.raises(SignatureMismatch, match=r"input 'image', row 2: range: value 7\.0 at \[2, 5\]"):
        model.infer(image=wrong)
    with pytest.raises(SignatureMismatch, match="expected FP32, got FP64"):
        model.infer(image=IMAGES.astype(np.float64))
    with pytest.raises(SignatureMismatch, match="lacks this input"):
        model.infer()
    with pytest.raises(MalformedRequest, match="no such output"):
        model.infer({INPUT: IMAGES}, outputs=("nothing",))
    with pytest.raises(MalformedRequest, match="at most 128"):
        model.infer({INPUT: IMAGES}, request_id="x" * 200)


def test_inputs_that_are_no_mapping_are_told_how_to_be_given(model: Model) -> None:
    with pytest.raises(MalformedRequest, match=r"inputs: expected a mapping .*, got ndarray; .*'digits' takes: image"):
        model.infer(IMAGES)  # type: ignore[arg-type]


def test_a_model_that_fails_says_so_and_answers_the_next_request(model: Model) -> None:
    bright = np.full((1, 64), 0.99, dtype=np.float32)
    with pytest.raises(ModelFailed, match="digits"):
        model.infer(image=bright)
    model.infer(image=IMAGES)
    counted = model.statistics()
    assert (counted.success_count, counted.fail_count, counted.rows) == (1, 1, 4)


def test_counts_samples_and_labels_arrive_in_the_state_folder(package: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with load(package, state=state) as model:
        first = model.infer(image=IMAGES[:1])
        assert first.label_wanted
        rows = model.infer(image=IMAGES, group="ship-4")
        model.feedback(first.request_id, "7", source="operator")
        model.feedback(rows.request_id, 3, row=2)
        with pytest.raises(UnknownRequest):
            model.feedback("nobody", "7")
        with pytest.raises(SignatureMismatch):
            model.infer(image=IMAGES * 5)
    labels = [label for batch in messages(state, Stream.LABELS, LabelBatch) for label in batch.labels]
    assert [(label.request_id, label.label) for label in labels] == [
        (first.request_id, "7"),
        (f"{rows.request_id}/2", "3"),
    ]
    samples = [sample for batch in messages(state, Stream.SAMPLES, SampleBatch) for sample in batch.samples]
    assert len(samples) == 5
    np.testing.assert_array_equal(samples[0].inputs[INPUT].array().ravel(), IMAGES[0])
    metrics = [model for report in messages(state, Stream.METRICS, MetricsReport) for model in report.models]
    assert [(each.requests, each.rows, each.refused) for each in metrics] == [(2, 5, 1)]
    profiles = messages(state, Stream.PROFILES, ProfileReport)
    assert sum(report.rows for report in profiles) == 5


def test_an_application_may_write_to_its_arrays_as_soon_as_it_has_the_answer(package: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    frame = IMAGES[:1].copy()
    with load(package, state=state) as model:
        given = model.infer(image=frame)
        given.outputs[OUTPUT][:] = 0.0
        frame[:] = -1.0
    samples = [sample for batch in messages(state, Stream.SAMPLES, SampleBatch) for sample in batch.samples]
    np.testing.assert_array_equal(samples[0].inputs[INPUT].array().ravel(), IMAGES[0])
    counts = {name: each for r in messages(state, Stream.PROFILES, ProfileReport) for name, each in r.counts.items()}
    assert counts["confidence"].total > 0.1


def test_several_threads_ask_one_model(model: Model) -> None:
    expected = model.infer(image=IMAGES).outputs[OUTPUT]
    given: list[NDArray[Any]] = []

    def ask() -> None:
        given.extend(model.infer(image=IMAGES).outputs[OUTPUT] for _ in range(50))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) == 200
    assert all(np.array_equal(each, expected) for each in given)
    assert model.statistics().success_count == 201


def test_a_closed_model_says_so_and_its_state_folder_is_free_again(package: Path, tmp_path: Path) -> None:
    model = load(package, state=tmp_path / "state")
    model.close()
    model.close()
    with pytest.raises(ModelUnavailable, match="closed"):
        model.infer(image=IMAGES)
    load(package, state=tmp_path / "state").close()


def test_without_a_state_folder_nothing_is_kept_and_labels_are_refused(model: Model, package: Path) -> None:
    given = model.infer(image=IMAGES[:1])
    assert not given.label_wanted
    with pytest.raises(Unsupported, match="without a state folder"):
        model.feedback(given.request_id, "7")
    assert sorted(path.name for path in package.parent.iterdir()) == ["digits"]


def test_an_agent_and_a_program_do_not_share_a_state_folder(package: Path, tmp_path: Path) -> None:
    agent = Agent(AgentConfig(state=str(tmp_path / "state"), api=ApiSettings(port=0)))
    try:
        with pytest.raises(ConfigurationError, match="another agent"):
            load(package, state=tmp_path / "state")
    finally:
        agent.close()


def test_a_second_model_with_the_same_state_is_told_what_holds_it(package: Path, tmp_path: Path) -> None:
    with load(package, state=tmp_path / "state"):
        with pytest.raises(ConfigurationError, match="a program that has loaded a model with it") as caught:
            load(package, state=tmp_path / "state")
        assert str(caught.value).endswith("close that model or stop the agent, or give another folder as state")
        assert "--state" not in str(caught.value)


def test_a_program_whose_identity_is_damaged_beyond_mending_is_answered_all_the_same(
    package: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "identity.json").write_bytes(bytes(100))
    with load(package, state=state) as model:
        assert model.infer(image=IMAGES[:1]).request_id
    assert f"{state}/identity.json" in caplog.text
    assert "enrol this device again" in caplog.text


def test_a_package_that_was_changed_or_answers_wrongly_is_not_loaded(package: Path, tmp_path: Path) -> None:
    (package / "card.md").write_text("changed")
    with pytest.raises(DigestMismatch):
        load(package)
    wrong = make_package(tmp_path / "wrong", golden_is_wrong=True)
    state = tmp_path / "state"
    with pytest.raises(SelfTestFailed):
        load(wrong.folder, state=state)
    make_package(tmp_path / "right")
    load(tmp_path / "right", state=state).close()  # the failure has given the state folder back


def test_importing_the_package_imports_neither_runtime_nor_numpy() -> None:
    code = (
        "import sys, edge_agent; heavy = {'numpy', 'onnxruntime', 'msgspec'} & set(sys.modules); "
        "assert not heavy, heavy; from edge_agent import load; assert 'onnxruntime' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edge_agent.nothing
