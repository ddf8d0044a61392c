"""What a device answers to requests in frames."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.config import AppSettings
from edge_agent.contract import frames
from edge_agent.contract.frame_messages import Accepted, Infer, Inferred, Metadata, Models, Pong, Values, Wanted
from edge_agent.contract.messages import LabelBatch
from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype
from edge_agent.contract.topics import Stream
from tests.edge_agent.serving.frames.conftest import Connect
from tests.fakes.frames_device import FramesDevice, serving_frames
from tests.fakes.packages import answer, make_signature, model_weights, reference_images

IMAGES = reference_images(4)
EXPECTED = answer(*model_weights(), IMAGES)


def probabilities(found: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    assert isinstance(found, Inferred)
    return frames.array_of(found.outputs[0])


def test_an_inference_is_answered_with_model_version_package_and_request(
    shared: FramesDevice, connect: Connect
) -> None:
    raw = connect(shared)
    raw.infer(2**63, IMAGES, request="job-1")
    found = raw.answer()
    assert isinstance(found, Inferred)
    loaded = shared.slots.get("digits")
    assert (found.id, found.model, found.version, found.package) == (2**63, "digits", "1", loaded.digest)
    assert (found.request, found.label_wanted, found.violations) == ("job-1", True, [])
    np.testing.assert_allclose(probabilities(found), EXPECTED, rtol=1e-5)


def test_many_requests_in_one_piece_are_all_answered(shared: FramesDevice, connect: Connect) -> None:
    raw = connect(shared)
    message = [
        b"".join(
            frames.encode_tensors(Infer(v=1, id=number, model="digits", inputs=[]), {"image": IMAGES[number % 4 :][:1]})
        )
        for number in range(1, 101)
    ]
    raw.send(b"".join(message))
    found = {each.id: each for each in (raw.answer() for _ in range(100))}
    for number in range(1, 101):
        np.testing.assert_allclose(probabilities(found[number])[0], EXPECTED[number % 4], rtol=1e-5)


def test_a_quick_model_does_not_wait_for_a_slow_one(device: FramesDevice, connect: Connect) -> None:
    raw = connect(device)
    raw.infer(1, IMAGES, model="slow")
    raw.infer(2, IMAGES)
    assert raw.answer().id == 2
    device.gated.gate.set()
    slow = raw.answer()
    assert slow.id == 1
    np.testing.assert_allclose(probabilities(slow), EXPECTED, rtol=1e-5)


def test_the_models_and_their_signatures_are_told(shared: FramesDevice, connect: Connect) -> None:
    raw = connect(shared)
    raw.send_map(op="models", v=1, id=1)
    found = raw.answer()
    assert isinstance(found, Models)
    assert [(each.name, each.version, each.default) for each in found.models] == [
        ("digits", "1", True),
        ("echo", "1", True),
        ("slow", "1", True),
    ]
    raw.send_map(op="metadata", v=1, id=2, model="digits")
    told = raw.answer()
    assert isinstance(told, Metadata)
    assert isinstance(told.signature, Signature)
    assert told.signature == make_signature()
    raw.send_map(op="ping", v=1, id=3)
    pong = raw.answer()
    assert isinstance(pong, Pong)
    assert pong.agent == "1.2.3"


def test_feedback_is_in_the_outbox_when_it_is_accepted(device: FramesDevice, connect: Connect) -> None:
    raw = connect(device)
    raw.infer(1, IMAGES[:1], request="one")
    raw.infer(2, IMAGES, request="four")
    raw.answer(), raw.answer()
    raw.send_map(op="feedback", v=1, id=3, model="digits", request="one", label="7", row=0)
    told = raw.answer()
    assert isinstance(told, Accepted)
    assert told.sampled
    raw.send_map(op="feedback", v=1, id=4, model="digits", request="four", label=2, row=3, source="operator")
    assert isinstance(raw.answer(), Accepted)
    labels = [label for batch in device.sent(Stream.LABELS, LabelBatch) for label in batch.labels]
    assert [(label.request_id, label.label) for label in labels] == [("one", "7"), ("four/3", "2")]
    raw.send_map(op="feedback", v=1, id=5, model="digits", request="never", label="7")
    refused = raw.failure()
    assert (refused.id, refused.status, refused.kind) == (5, 404, "UnknownRequest")


def test_a_label_for_a_model_asleep_is_kept_without_waking_it(device: FramesDevice, connect: Connect) -> None:
    raw = connect(device)
    raw.infer(1, IMAGES[:1], request="one")
    raw.answer()
    device.slots.unload("digits", reason="idle", idle_since=device.slots.get("digits").last_used + 1)
    raw.send_map(op="feedback", v=1, id=2, model="digits", request="one", label="7")
    assert isinstance(raw.answer(), Accepted)
    assert "digits" not in {loaded.name for loaded in device.slots.models()}


def test_wrong_values_are_named_and_the_connection_goes_on(shared: FramesDevice, connect: Connect) -> None:
    raw = connect(shared)
    wrong = IMAGES.copy()
    wrong[2, 7] = np.nan
    raw.infer(1, wrong)
    found = raw.failure()
    assert (found.id, found.status, found.kind) == (1, 400, "SignatureMismatch")
    assert (found.tensor, found.rule, found.row) == ("image", "missing", 2)
    raw.infer(2, np.full((1, 64), 0.99, dtype=np.float32))  # right, but this model fails on it
    failed = raw.failure()
    assert (failed.status, failed.kind) == (500, "ModelFailed")
    raw.infer(3, IMAGES)
    assert isinstance(raw.answer(), Inferred)


@pytest.mark.parametrize(
    ("members", "refusal", "text"),
    [
        ({"model": "nothing"}, (404, "UnknownModel"), "nothing"),
        ({"version": "9"}, (404, "UnknownModel"), "'9'"),
        ({"outputs": [Wanted("mask")]}, (400, "MalformedRequest"), "no such output"),
        ({"outputs": [Wanted("probabilities")] * 2}, (400, "MalformedRequest"), "twice"),
        ({"request": "x" * 129}, (400, "MalformedRequest"), "at most 128"),
        ({"group": "x" * 129}, (400, "MalformedRequest"), "at most 128"),
    ],
)
def test_a_wrong_request_is_refused_with_its_reason(
    shared: FramesDevice, connect: Connect, members: dict[str, Any], refusal: tuple[int, str], text: str
) -> None:
    raw = connect(shared)
    raw.infer(1, IMAGES, **{"model": "digits", **members})
    found = raw.failure()
    assert (found.id, found.status, found.kind) == (1, *refusal)
    assert text in found.error


def test_tensors_that_lie_about_themselves_are_refused(shared: FramesDevice, connect: Connect) -> None:
    raw = connect(shared)
    tensor = {"name": "image", "type": "FP32", "shape": [1, 64], "data": bytes(256)}
    cases = [
        ([{**tensor, "data": bytes(255)}], "needs 256 bytes, got 255"),
        ([{**tensor, "shape": [2**40, 2**40]}], "rows, the limit is 1024"),
        ([{**tensor, "shape": [1, 2**62, 2**62]}], "bytes, got 256"),
        ([{**tensor, "shape": [1] * 40}], "1 to 32 axes"),
        ([{**tensor, "shape": [0, 64], "data": b""}], "each at least 1"),
        ([tensor, tensor], "twice"),
        ([{"name": "image", "type": "FP32", "shape": [1, 64]}], "has no data"),
        ([{**tensor, "type": "BYTES", "data": b"abc"}], "BYTES elements"),
        ([{**tensor, "type": "FP128"}], "FP128"),
        ([{**tensor, "data": "text"}], "data"),
        ([], "lacks this input"),
    ]
    for number, (inputs, text) in enumerate(cases, start=1):
        raw.send_map(op="infer", v=1, id=number, model="digits", inputs=inputs)
        found = raw.failure()
        assert (found.id, found.status) == (number, 400)
        assert text in found.error


def test_text_goes_there_and_back(shared: FramesDevice, connect: Connect) -> None:
    raw = connect(shared)
    words = np.array([["grün"], [""]], dtype=object)
    message = Infer(v=1, id=1, model="echo", inputs=[])
    raw.send(b"".join(frames.encode_tensors(message, {"text": words})))
    found = raw.answer()
    assert isinstance(found, Inferred)
    by_name = {values.name: frames.array_of(values) for values in found.outputs if values.type is Datatype.BYTES}
    assert [array.ravel().tolist() for array in by_name.values()] == [["grün".encode(), b""]]


@contextlib.contextmanager
def shared_memory(size: int) -> Iterator[Path]:
    path = Path("/dev/shm") / f"shoal-test-{secrets.token_hex(6)}"  # noqa: S108 - where shm_open(3) keeps its objects
    path.write_bytes(bytes(size))
    try:
        yield path
    finally:
        path.unlink()


def test_inputs_and_outputs_lie_in_shared_memory(shared: FramesDevice, connect: Connect) -> None:
    raw = connect(shared)
    with shared_memory(4096) as memory:
        with memory.open("r+b") as file:
            file.seek(64)
            file.write(IMAGES.tobytes())
        shared.regions.register("pixels", memory.name, 0, 4096)
        try:
            message = Infer(
                v=1,
                id=1,
                model="digits",
                outputs=[Wanted("probabilities", region="pixels", offset=2048, size=200)],
                inputs=[],
            )
            place = Values("image", Datatype.FP32, (4, 64), region="pixels", offset=64, size=1024)
            raw.send(b"".join(frames.encode_tensors(message, {"image": place})))
            found = raw.answer()
            assert isinstance(found, Inferred)
            assert found.outputs == [
                Values("probabilities", Datatype.FP32, (4, 10), region="pixels", offset=2048, size=160)
            ]
            written = np.frombuffer(memory.read_bytes()[2048 : 2048 + 160], dtype=np.float32).reshape(4, 10)
            np.testing.assert_allclose(written, EXPECTED, rtol=1e-5)
            message.outputs = [Wanted("probabilities", region="pixels", offset=2048, size=100)]
            raw.send(b"".join(frames.encode_tensors(message, {"image": IMAGES})))
            assert "takes 160 bytes" in raw.failure().error
            message.outputs = [Wanted("probabilities", region="pixels", offset=4000, size=200)]
            raw.send(b"".join(frames.encode_tensors(message, {"image": IMAGES})))
            assert "reach to byte 4200" in raw.failure().error
        finally:
            shared.regions.unregister("pixels")
    message.outputs = None
    raw.send(b"".join(frames.encode_tensors(message, {"image": place})))
    assert raw.failure().kind == "UnknownRegion"


def test_a_model_that_sleeps_is_woken(device: FramesDevice, connect: Connect) -> None:
    raw = connect(device)
    device.slots.unload("digits", "1", reason="idle", idle_since=time.monotonic() + 60)
    raw.infer(1, IMAGES)
    np.testing.assert_allclose(probabilities(raw.answer()), EXPECTED, rtol=1e-5)


def test_an_application_may_do_what_its_settings_say(tmp_path: Path, connect: Connect) -> None:
    apps = (AppSettings(name="camera", uid=os.getuid(), models=("digits",), requests_per_s=0.001, burst=3),)
    with serving_frames(tmp_path, apps=apps) as device:
        raw = connect(device)
        raw.infer(1, IMAGES, model="slow")
        assert (raw.failure().status, device.access.apps[0].forbidden) == (403, 1)
        raw.send_map(op="models", v=1, id=2)
        listed = raw.answer()
        assert isinstance(listed, Models)
        assert [each.name for each in listed.models] == ["digits"]
        raw.infer(3, IMAGES)
        raw.infer(4, IMAGES)
        raw.infer(5, IMAGES)
        assert [type(raw.answer()) for _ in range(2)] == [Inferred, Inferred]
        refused = raw.failure()
        assert (refused.status, refused.kind) == (429, "QuotaExceeded")
        assert refused.retry_after_s > 1.0
        raw.send_map(op="models", v=1, id=6)
        assert raw.failure().status == 429, "the list takes work too"
        raw.send_map(op="ping", v=1, id=7)
        assert isinstance(raw.answer(), Pong)


def test_who_is_no_application_is_told_so_and_sent_away(tmp_path: Path, connect: Connect) -> None:
    with serving_frames(tmp_path, apps=(AppSettings(name="camera", uid=123456),)) as device:
        raw = connect(device)
        refused = raw.failure()
        assert (refused.id, refused.status, refused.kind) == (0, 401, "Unauthenticated")
        assert raw.is_closed()
