"""Requests in frames that meet in one turn of the loop: nobody can tell, but that the model runs less often."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edge_agent.config import AppSettings
from edge_agent.contract import frames
from edge_agent.contract.frame_messages import Failure, Infer, Inferred, Pong
from edge_agent.runtime.slots import LoadedModel
from edge_agent.serving.frames import lane
from edge_agent.serving.frames.answer_templates import FrameTemplates
from edge_agent.serving.request import InferenceRequest, SharedRun
from edge_agent.serving.shared_memory import Regions
from tests.edge_agent.serving.frames.conftest import Connect
from tests.fakes.frames_device import FramesDevice, serving_frames
from tests.fakes.packages import answer, model_weights, reference_images

IMAGES = reference_images(20, seed=3)
EXPECTED = answer(*model_weights(), IMAGES)


@pytest.fixture
def loaded(device: FramesDevice) -> LoadedModel:
    """Its own model, which requests may run on together."""
    found = device.slots.get("digits")
    assert found.together > 3
    return found


def frame(number: int, row: int, **members: object) -> bytes:
    message = Infer(v=1, id=number, model="digits", inputs=[], **members)  # type: ignore[arg-type]
    return b"".join(frames.encode_tensors(message, {"image": IMAGES[row : row + 1]}))


def is_right(found: object, row: int) -> bool:
    return isinstance(found, Inferred) and np.allclose(frames.array_of(found.outputs[0])[0], EXPECTED[row], rtol=1e-5)


def test_requests_that_come_in_one_piece_run_as_few_and_are_counted_each(
    device: FramesDevice, connect: Connect, loaded: LoadedModel
) -> None:
    raw = connect(device)
    before = loaded.statistics.snapshot()
    raw.send(b"".join(frame(number, number) for number in range(1, 11)))
    found = {each.id: each for each in (raw.answer() for _ in range(10))}
    assert all(is_right(found[number], number) for number in range(1, 11))
    assert len({each.request for each in found.values() if isinstance(each, Inferred)}) == 10
    after = loaded.statistics.snapshot()
    assert after.success_count - before.success_count == after.rows - before.rows == 10
    assert after.execution_count - before.execution_count < 10
    assert not loaded.leases


def test_each_gets_its_own_error_and_what_differs_does_not_mix(
    device: FramesDevice, connect: Connect, loaded: LoadedModel
) -> None:
    raw, other = connect(device), connect(device)
    wrong = Infer(v=1, id=3, model="digits", inputs=[])
    nan = b"".join(frames.encode_tensors(wrong, {"image": np.full_like(IMAGES[:1], np.nan)}))
    two_rows = b"".join(frames.encode_tensors(Infer(v=1, id=5, model="digits", inputs=[]), {"image": IMAGES[:2]}))
    named = frame(6, 6, request="mine")
    other.send(frame(9, 9))
    raw.send(frame(1, 1) + frame(2, 2, monitor=False) + nan + frame(4, 4) + two_rows + named)
    found = {each.id: each for each in (raw.answer() for _ in range(6))}
    assert all(is_right(found[number], number) for number in (1, 2, 4, 6))
    assert is_right(found[5], 0)
    assert isinstance(found[6], Inferred)
    assert found[6].request == "mine"
    failed = found[3]
    assert isinstance(failed, Failure)
    assert "image" in failed.error
    assert is_right(other.answer(), 9)
    assert not loaded.leases


def test_what_came_before_what_ends_the_connection_is_answered_first(
    device: FramesDevice, connect: Connect, loaded: LoadedModel
) -> None:
    raw = connect(device)
    raw.send(frame(1, 1) + frame(2, 2) + frame(3, 3) + b"\x03\0\0\0abc")
    assert all(is_right(raw.answer(), number) for number in (1, 2, 3))
    assert raw.failure().id == 0
    assert raw.is_closed()
    assert not loaded.leases


def test_a_client_that_goes_before_its_answers_takes_none_from_the_others(
    device: FramesDevice, connect: Connect, loaded: LoadedModel
) -> None:
    for _ in range(20):
        going, staying = connect(device), connect(device)
        staying.send(frame(1, 1))
        going.send(frame(1, 1) + frame(2, 2))
        going.close()
        assert is_right(staying.answer(), 1)
    last = connect(device)
    last.send_map(op="ping", v=1, id=1)
    assert isinstance(last.answer(), Pong)
    assert not loaded.leases


def test_what_finds_no_room_to_wait_is_answered_by_itself(
    device: FramesDevice, connect: Connect, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "_WAITING_BYTES", 3 * IMAGES[:1].nbytes)
    raw = connect(device)
    before = loaded.statistics.snapshot()
    for _ in range(3):  # room that was taken is given back
        raw.send(b"".join(frame(number, number) for number in range(1, 8)))
        found = {each.id: each for each in (raw.answer() for _ in range(7))}
        assert all(is_right(found[number], number) for number in range(1, 8))
    after = loaded.statistics.snapshot().batches
    assert after[3][0] - before.batches.get(3, (0, 0))[0] == 3
    assert after[1][0] - before.batches.get(1, (0, 0))[0] == 12


def test_a_quota_counts_each_of_them(tmp_path: Path, connect: Connect) -> None:
    apps = (AppSettings(name="camera", uid=os.getuid(), models=("digits",), requests_per_s=0.001, burst=4),)
    with serving_frames(tmp_path, apps=apps) as device:
        raw = connect(device)
        raw.send(b"".join(frame(number, number) for number in range(1, 8)))
        found = {each.id: each for each in (raw.answer() for _ in range(7))}
    assert [is_right(found[number], number) for number in range(1, 8)] == [True] * 4 + [False] * 3
    assert {each.status for each in found.values() if isinstance(each, Failure)} == {429}


def test_the_frames_of_a_shared_run_are_those_that_each_would_get() -> None:
    outputs: dict[str, np.ndarray] = {
        "p": np.arange(12, dtype=np.float32).reshape(4, 3),
        "q": np.arange(4, dtype=np.int64),
    }
    run = SharedRun("m", "1", "d" * 64, ["a-8", "a-9", "a-10", "a-11"], outputs, {2})
    shared, single = FrameTemplates(Regions()), FrameTemplates(Regions())
    request = InferenceRequest("", {}, binary=True)
    for _ in range(3):
        found = shared.encode_shared([1, 200, 3, 70_000], run)
        for index, number in enumerate((1, 200, 3, 70_000)):
            expected = b"".join(map(bytes, single.encode(number, request, run.answer(index))))
            assert b"".join(map(bytes, found[index])) == expected
