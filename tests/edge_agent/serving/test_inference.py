"""The serving core with real models: inline and in threads, and when things go wrong."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from edge_agent.contract.errors import (
    DeadlineExceeded,
    MalformedRequest,
    ModelFailed,
    SignatureMismatch,
)
from edge_agent.runtime.slots import load
from edge_agent.serving.inference import Inference
from edge_agent.serving.request import InferenceAnswer, InferenceRequest, WantedOutput
from tests.edge_agent.serving.inference_parts import (
    A_WHILE,
    LONG_S,
    Ear,
    Load,
    begun,
    expected,
    held,
    outcomes,
    request,
    running,
    taking,
)
from tests.fakes.hanging_package import FOREVER
from tests.fakes.packages import (
    INPUT,
    OUTPUT,
    PIXELS,
    reference_images,
)
from tests.fakes.text_package import make_text_package

# Inline ------------------------------------------------------------------------------------------------------------


def test_an_answer_names_model_version_package_and_request(inference: Inference, ear: Ear, digits: Load) -> None:
    loaded = digits()
    assert inference.inline(loaded)
    images = reference_images(3)
    said = inference.answer(loaded, request(images, "label me", group="engine 7"))
    assert (said.model, said.version, said.package, said.request_id) == ("digits", "1", loaded.digest, "label me")
    assert said.label_wanted
    np.testing.assert_allclose(said.outputs[OUTPUT], expected(images), rtol=1e-4)
    assert [(name, group) for name, _, _, group in ear.observed] == [("label me", "engine 7")]
    counts = loaded.statistics.snapshot()
    assert (counts.success_count, counts.rows, counts.execution_count) == (1, 3, 1)
    assert counts.batches.keys() == {3}
    assert 0 < counts.compute_infer_ns < counts.success_ns


def test_requests_without_an_id_get_one_each(inference: Inference, digits: Load) -> None:
    loaded = digits()
    assert len({inference.answer(loaded, request()).request_id for _ in range(10)}) == 10


def test_a_probe_is_neither_counted_nor_observed(inference: Inference, ear: Ear, digits: Load) -> None:
    loaded = digits()
    assert inference.answer(loaded, request(monitored=False)).outputs[OUTPUT].shape == (1, 10)
    with pytest.raises(SignatureMismatch):
        inference.answer(loaded, request(np.full((1, PIXELS), 7, np.float32), monitored=False))
    counts = loaded.statistics.snapshot()
    assert (counts.success_count, counts.refused, loaded.requests) == (0, 0, 0)
    assert not ear.observed
    assert not ear.refusals


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinities_are_refused_by_rule_before_the_model_sees_them(
    inference: Inference, ear: Ear, digits: Load, value: float
) -> None:
    loaded = digits()
    images = reference_images(2)
    images[1, 5] = value
    with pytest.raises(SignatureMismatch, match="input 'image', row 1"):
        inference.answer(loaded, request(images))
    assert len(ear.refusals) == 1
    counts = loaded.statistics.snapshot()
    assert (counts.refused, counts.success_count, sum(counts.refused_by_rule.values())) == (1, 0, 1)


def test_a_model_that_gives_nan_is_answered_and_observed(inference: Inference, ear: Ear, sleeper: Load) -> None:
    loaded = sleeper()  # its signature has no range, so that an infinity may enter
    image = np.zeros((1, PIXELS), np.float32)
    image[0, 1] = np.inf
    said = inference.answer(loaded, request(image))
    assert np.isnan(said.outputs[OUTPUT]).any()
    assert len(ear.observed) == 1


def test_an_output_that_the_model_does_not_have_is_refused_before_it_runs(
    inference: Inference, ear: Ear, digits: Load
) -> None:
    with pytest.raises(MalformedRequest, match="output 'logits': the model has no such output; it has: probabilities"):
        inference.answer(digits(), request(outputs=(WantedOutput("logits"),)))
    assert len(ear.refusals) == 1


def test_a_model_that_fails_is_counted_against_the_model(inference: Inference, ear: Ear, digits: Load) -> None:
    loaded = digits()
    with pytest.raises(ModelFailed, match="model 'digits' version '1' failed on this input"):
        inference.answer(loaded, request(np.full((1, PIXELS), 0.97, np.float32)))
    assert (loaded.requests, loaded.failed, ear.failures) == (1, 1, 1)
    assert loaded.statistics.snapshot().fail_count == 1
    assert inference.answer(loaded, request()).outputs


def test_an_observer_that_fails_costs_nobody_the_answer(inference: Inference, ear: Ear, digits: Load) -> None:
    ear.breaks = True
    said = inference.answer(digits(), request())
    assert not said.label_wanted
    assert said.outputs[OUTPUT].shape == (1, 10)


def test_text_that_only_the_run_finds_wrong_is_the_caller_s_fault(
    inference: Inference, ear: Ear, tmp_path: Path
) -> None:
    loaded = load(make_text_package(tmp_path / "echo"))
    name = loaded.signature.inputs[0].name
    shape = tuple(axis or 1 for axis in loaded.signature.inputs[0].shape)
    wrong = np.full(shape, b"\xff\xfe", dtype=object)
    with pytest.raises(SignatureMismatch):
        inference.answer(loaded, InferenceRequest("", {name: wrong}))
    assert len(ear.refusals) == 1
    assert loaded.failed == 0
    loaded.close()


def test_a_hung_run_is_broken_off_on_the_very_thread_that_called(inference: Inference, ear: Ear, sleeper: Load) -> None:
    loaded = sleeper(max_run_s=0.2)
    with pytest.raises(ModelFailed, match=r"hung on this input: broken off after \d+\.\d s, its limit is 0.2 s"):
        inference.answer(loaded, taking(FOREVER))
    assert (loaded.failed, ear.failures) == (1, 1)
    assert inference.answer(loaded, taking(0)).outputs


# In threads ---------------------------------------------------------------------------------------------------------


async def test_a_run_in_a_thread_leaves_the_event_loop_free(inference: Inference, sleeper: Load) -> None:
    loaded = sleeper()
    gated = held(loaded)
    task = await begun(inference.answer_later(loaded, taking(0)))
    await running(gated)  # which only a loop that is free can see
    await asyncio.sleep(0.01)
    assert not task.done()
    gated.gate.set()
    assert (await task).outputs[OUTPUT].shape == (1, 10)


async def test_a_bystander_of_a_hung_run_is_answered(inference: Inference, ear: Ear, sleeper: Load) -> None:
    loaded = sleeper(max_run_s=2.0)  # several times what the slow one takes, on a machine that is busy as well
    hung = await begun(inference.answer_later(loaded, taking(FOREVER)))
    await asyncio.sleep(1.9)
    slow = await begun(inference.answer_later(loaded, taking(A_WHILE)))  # is broken off with it, and begun anew
    first, second = await outcomes(hung, slow)
    assert isinstance(first, ModelFailed)
    assert "hung" in str(first)
    assert isinstance(second, InferenceAnswer)
    assert loaded.statistics.snapshot().fail_count == ear.failures == 1


async def test_a_large_input_is_checked_in_the_thread(inference: Inference, ear: Ear, digits: Load) -> None:
    loaded = digits()
    images = np.concatenate([reference_images(400), np.full((1, PIXELS), 2.0, np.float32)])
    with pytest.raises(SignatureMismatch, match="row 400: range"):
        await inference.answer_later(loaded, request(images))
    assert len(ear.refusals) == 1
    said = await inference.answer_later(loaded, request(images[:-1]))
    np.testing.assert_allclose(said.outputs[OUTPUT], expected(images[:-1]), rtol=1e-4)
    for wrong in ({"other": images}, {INPUT: images, "more": images}, {INPUT: images[0, 0] * np.ones(())}):
        with pytest.raises(SignatureMismatch):
            await inference.answer_later(loaded, InferenceRequest("", wrong))


async def test_a_deadline_that_passes_before_a_thread_is_free_is_not_run(
    inference: Inference, ear: Ear, sleeper: Load
) -> None:
    loaded = sleeper()
    gated = held(loaded)
    busy = [await begun(inference.answer_later(loaded, taking(0))) for _ in range(2)]
    late = await begun(inference.answer_later(loaded, taking(0, timeout_us=20_000)))
    with pytest.raises(
        DeadlineExceeded, match=r"'sleeper': waited \d+\.\d ms for its turn, and the request allows 20 ms"
    ):
        await asyncio.wait_for(late, LONG_S)
    assert not any(task.done() for task in busy), "it is told when its time is over, not when its turn comes"
    gated.gate.set()
    await outcomes(*busy)
    assert len(ear.observed) == 2
    assert (loaded.statistics.snapshot().fail_count, loaded.failed) == (1, 0), "no fault of the model"


async def test_the_urgent_overtake_in_the_queue_for_threads(ear: Ear, sleeper: Load) -> None:
    inference = Inference(ear, threads=1)  # of two, either may be the first to tell the observer
    loaded = sleeper()
    gated = held(loaded)
    tasks = [
        await begun(inference.answer_later(loaded, taking(0, name, priority=priority)))
        for name, priority in (("busy", 0), ("none", 0), ("low", 5), ("high", 1))
    ]
    assert inference.waiting(loaded) == 3
    gated.gate.set()
    await outcomes(*tasks)
    inference.close()
    assert [name for name, *_ in ear.observed] == ["busy", "high", "low", "none"]


async def test_other_work_runs_in_other_threads(inference: Inference) -> None:
    assert (await inference.in_thread(threading.current_thread)).name.startswith("errand")
    assert await inference.in_thread(int, "12", base=8) == 10
