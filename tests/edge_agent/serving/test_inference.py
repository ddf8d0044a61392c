"""The serving core with real models: inline, in threads, in batches, and when things go wrong."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.contract.errors import (
    Busy,
    CallerError,
    DeadlineExceeded,
    MalformedRequest,
    ModelFailed,
    SignatureMismatch,
)
from edge_agent.contract.manifest import Batching, Overflow
from edge_agent.runtime.slots import LoadedModel, load
from edge_agent.runtime.watchdog import Watchdog
from edge_agent.serving.inference import Inference, split
from edge_agent.serving.request import InferenceAnswer, InferenceRequest, WantedOutput
from tests.fakes.hanging_package import FOREVER, make_hanging_package
from tests.fakes.packages import (
    INPUT,
    OUTPUT,
    PIXELS,
    answer,
    make_package,
    model_weights,
    reference_images,
)
from tests.fakes.text_package import make_text_package

# Turns of the loop in a run that is to last for about 0.3 s, and seconds that nothing here takes.
A_WHILE = 2e5
LONG_S = 60.0


class Ear:
    """An observer that remembers what it hears."""

    def __init__(self) -> None:
        self.observed: list[tuple[str, NDArray[Any], NDArray[Any], str]] = []
        self.refusals: list[CallerError] = []
        self.failures = 0
        self.breaks = False

    def observe(
        self,
        loaded: LoadedModel,
        request_id: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
        *,
        latency_us: float,
        group: str,
    ) -> bool:
        if self.breaks:
            raise ValueError("broken")
        assert latency_us > 0
        assert not loaded.retired
        self.observed.append((request_id, inputs[INPUT], outputs[OUTPUT], group))
        return request_id == "label me"

    def refused(self, loaded: LoadedModel, error: CallerError) -> None:
        assert not loaded.retired
        self.refusals.append(error)

    def failed(self, loaded: LoadedModel) -> None:
        assert not loaded.retired
        self.failures += 1


Load = Callable[..., LoadedModel]


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def inference(ear: Ear) -> Iterator[Inference]:
    inference = Inference(ear, threads=2, watchdog=Watchdog(tick_s=0.05))
    yield inference
    inference.close()


@pytest.fixture
def digits(tmp_path: Path) -> Iterator[Load]:
    """Loads "digits", which fails on pixels above 0.95, with a batching policy."""
    models: list[LoadedModel] = []

    def make(batching: Batching | None = None) -> LoadedModel:
        folder = tmp_path / f"digits{len(models)}"
        models.append(load(make_package(folder, fails_above=0.95, batching=batching)))
        return models[-1]

    yield make
    for loaded in models:
        loaded.close()


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Load]:
    """Loads "sleeper", which takes as long as its first pixel says."""
    models: list[LoadedModel] = []

    def make(batching: Batching | None = None, max_run_s: float = 30.0) -> LoadedModel:
        folder = tmp_path / f"sleeper{len(models)}"
        models.append(load(make_hanging_package(folder, batching=batching, max_run_s=max_run_s)))
        return models[-1]

    yield make
    for loaded in models:
        loaded.close()


def request(images: NDArray[np.float32] | None = None, name: str = "", **named: Any) -> InferenceRequest:
    return InferenceRequest(name, {INPUT: reference_images(1) if images is None else images}, **named)


def taking(turns: float, name: str = "", **named: Any) -> InferenceRequest:
    """A request for one row that keeps "sleeper" busy for so many turns."""
    image = np.zeros((1, PIXELS), np.float32)
    image[0, 0] = turns
    return request(image, name, **named)


def expected(images: NDArray[np.float32]) -> NDArray[np.float32]:
    return answer(*model_weights(), images)


async def begun(work: Coroutine[Any, Any, InferenceAnswer]) -> asyncio.Task[InferenceAnswer]:
    """A task that has come to its first wait."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def outcomes(*tasks: asyncio.Task[InferenceAnswer]) -> list[InferenceAnswer | BaseException]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LONG_S)


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
    task = await begun(inference.answer_later(sleeper(), taking(A_WHILE)))
    ticks = 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 3
    assert (await task).outputs[OUTPUT].shape == (1, 10)


async def test_a_bystander_of_a_hung_run_is_answered(inference: Inference, ear: Ear, sleeper: Load) -> None:
    loaded = sleeper(max_run_s=1.0)
    hung = await begun(inference.answer_later(loaded, taking(FOREVER)))
    await asyncio.sleep(0.9)
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
    busy = [await begun(inference.answer_later(loaded, taking(A_WHILE))) for _ in range(2)]
    late = await begun(inference.answer_later(loaded, taking(0, timeout_us=20_000)))
    with pytest.raises(
        DeadlineExceeded, match=r"'sleeper': waited \d+\.\d ms for its turn, and the request allows 20 ms"
    ):
        await asyncio.wait_for(late, LONG_S)
    assert not any(task.done() for task in busy), "it is told when its time is over, not when its turn comes"
    await outcomes(*busy)
    assert len(ear.observed) == 2
    assert (loaded.statistics.snapshot().fail_count, loaded.failed) == (1, 0), "no fault of the model"


async def test_the_urgent_overtake_in_the_queue_for_threads(inference: Inference, ear: Ear, sleeper: Load) -> None:
    loaded = sleeper()
    tasks = [await begun(inference.answer_later(loaded, taking(A_WHILE, f"busy {n}"))) for n in range(2)]
    tasks += [
        await begun(inference.answer_later(loaded, taking(A_WHILE, name, priority=priority)))
        for name, priority in (("none", 0), ("low", 5), ("high", 1))
    ]
    assert inference.waiting(loaded) == 3
    await outcomes(*tasks)
    order = [name for name, *_ in ear.observed if not name.startswith("busy")]
    assert order[-1] == "none"


async def test_other_work_runs_in_other_threads(inference: Inference) -> None:
    assert (await inference.in_thread(threading.current_thread)).name.startswith("errand")
    assert await inference.in_thread(int, "12", base=8) == 10


# In batches ---------------------------------------------------------------------------------------------------------


async def test_requests_are_put_together_and_each_gets_its_own_rows(
    inference: Inference, ear: Ear, digits: Load
) -> None:
    loaded = digits(Batching(max_rows=8, max_delay_us=10_000_000))
    assert not inference.inline(loaded)
    images = reference_images(8)
    parts = [images[:1], images[1:4], images[4:8]]
    tasks = [await begun(inference.answer_later(loaded, request(part, f"r{n}"))) for n, part in enumerate(parts)]
    answers = await outcomes(*tasks)
    for said, part, name in zip(answers, parts, ("r0", "r1", "r2"), strict=True):
        assert isinstance(said, InferenceAnswer)
        assert said.request_id == name
        np.testing.assert_allclose(said.outputs[OUTPUT], expected(part), rtol=1e-4)
        assert said.outputs[OUTPUT].base is None, "small parts do not keep the whole batch alive"
    counts = loaded.statistics.snapshot()
    assert (counts.success_count, counts.execution_count, counts.rows) == (3, 1, 8)
    assert counts.batches.keys() == {8}
    assert counts.queue_ns > 0
    assert loaded.requests == len(ear.observed) == 3


async def test_a_lonely_request_goes_when_the_delay_is_over(inference: Inference, digits: Load) -> None:
    loaded = digits(Batching(max_rows=8, max_delay_us=20_000))
    begin = time.monotonic()
    await asyncio.wait_for(inference.answer_later(loaded, request()), LONG_S)
    assert time.monotonic() - begin >= 0.015


async def test_those_that_come_during_a_run_make_the_next_batch(inference: Inference, sleeper: Load) -> None:
    loaded = sleeper(Batching(max_rows=8))
    tasks = [await begun(inference.answer_later(loaded, taking(A_WHILE)))]
    tasks += [await begun(inference.answer_later(loaded, taking(0))) for _ in range(5)]
    await outcomes(*tasks)
    assert loaded.statistics.snapshot().batches.keys() == {1, 5}


async def test_one_bad_row_in_a_batch_fails_alone(inference: Inference, ear: Ear, digits: Load) -> None:
    loaded = digits(Batching(max_rows=3, max_delay_us=10_000_000))
    bad = np.full((1, PIXELS), 0.97, np.float32)
    images = reference_images(2)
    tasks = [await begun(inference.answer_later(loaded, request(part))) for part in (images[:1], bad, images[1:])]
    first, second, third = await outcomes(*tasks)
    assert isinstance(second, ModelFailed)
    for said, part in ((first, images[:1]), (third, images[1:])):
        assert isinstance(said, InferenceAnswer)
        np.testing.assert_allclose(said.outputs[OUTPUT], expected(part), rtol=1e-4)
    assert (loaded.requests, loaded.failed, ear.failures) == (3, 1, 1)


async def test_one_hanging_row_in_a_batch_fails_alone(inference: Inference, sleeper: Load) -> None:
    loaded = sleeper(Batching(max_rows=3, max_delay_us=10_000_000), max_run_s=0.3)
    tasks = [await begun(inference.answer_later(loaded, taking(turns))) for turns in (0, FOREVER, 0)]
    first, second, third = await outcomes(*tasks)
    assert isinstance(first, InferenceAnswer)
    assert isinstance(third, InferenceAnswer)
    assert isinstance(second, ModelFailed)
    assert "hung" in str(second)


async def test_a_wrong_request_does_not_reach_the_batch(inference: Inference, ear: Ear, digits: Load) -> None:
    loaded = digits(Batching(max_rows=2, max_delay_us=10_000_000))
    with pytest.raises(SignatureMismatch):
        await inference.answer_later(loaded, request(np.full((1, PIXELS), np.nan, np.float32)))
    tasks = [await begun(inference.answer_later(loaded, request())) for _ in range(2)]
    assert all(isinstance(said, InferenceAnswer) for said in await outcomes(*tasks))
    assert loaded.statistics.snapshot().batches.keys() == {2}


async def test_a_full_queue_refuses_the_newest(inference: Inference, ear: Ear, sleeper: Load) -> None:
    loaded = sleeper(Batching(max_rows=4, max_queue=2))
    tasks = [await begun(inference.answer_later(loaded, taking(turns))) for turns in (A_WHILE, 0, 0)]
    with pytest.raises(Busy, match="model 'sleeper': 2 requests wait already, which is all its queue holds"):
        await inference.answer_later(loaded, taking(0))
    assert all(isinstance(said, InferenceAnswer) for said in await outcomes(*tasks))
    assert (loaded.requests, loaded.failed, ear.failures) == (3, 0, 0)
    assert loaded.statistics.snapshot().fail_count == 1


async def test_drop_oldest_refuses_the_oldest_of_the_least_urgent(inference: Inference, sleeper: Load) -> None:
    loaded = sleeper(Batching(max_rows=4, max_queue=2, overflow=Overflow.DROP_OLDEST))
    busy = await begun(inference.answer_later(loaded, taking(A_WHILE)))
    urgent = await begun(inference.answer_later(loaded, taking(0, priority=1)))
    oldest = await begun(inference.answer_later(loaded, taking(0)))
    newest = await begun(inference.answer_later(loaded, taking(0)))
    with pytest.raises(Busy, match="its queue is full, and newer requests came"):
        await asyncio.wait_for(oldest, LONG_S)
    assert not busy.done()
    assert all(isinstance(said, InferenceAnswer) for said in await outcomes(busy, urgent, newest))


async def test_the_policy_s_own_deadline_holds_where_a_request_says_nothing(
    inference: Inference, sleeper: Load
) -> None:
    loaded = sleeper(Batching(max_rows=4, timeout_us=20_000))
    busy = await begun(inference.answer_later(loaded, taking(A_WHILE)))
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(inference.answer_later(loaded, taking(0)), LONG_S)
    patient = await begun(inference.answer_later(loaded, taking(0, timeout_us=60_000_000)))
    assert all(isinstance(said, InferenceAnswer) for said in await outcomes(busy, patient))


async def test_an_application_that_vanishes_while_it_waits_leaves_the_queue(
    inference: Inference, ear: Ear, sleeper: Load
) -> None:
    loaded = sleeper(Batching(max_rows=4))
    busy = await begun(inference.answer_later(loaded, taking(A_WHILE, "busy")))
    gone = await begun(inference.answer_later(loaded, taking(0, "gone")))
    stays = await begun(inference.answer_later(loaded, taking(0, "stays")))
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert not busy.done()
    assert inference.waiting(loaded) == 1
    await outcomes(busy, stays)
    assert [name for name, *_ in ear.observed] == ["busy", "stays"]


async def test_an_application_that_vanishes_during_its_run_holds_the_model_until_that_ends(
    inference: Inference, sleeper: Load
) -> None:
    loaded = sleeper(Batching(max_rows=4))
    gone = await begun(inference.answer_later(loaded, taking(A_WHILE)))
    await asyncio.sleep(0.02)
    gone.cancel()
    await asyncio.sleep(0)
    assert not gone.done(), "its lease must outlive the run"
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(gone, LONG_S)
    assert not inference._running
    assert (await inference.answer_later(loaded, taking(0))).outputs


async def test_many_at_once_are_all_answered_once(inference: Inference, ear: Ear, digits: Load) -> None:
    loaded = digits(Batching(max_rows=16, preferred_rows=(4, 8), max_delay_us=1000, max_queue=1000))
    images = reference_images(300)
    tasks = [
        await begun(inference.answer_later(loaded, request(images[n : n + 1], str(n), priority=n % 3)))
        for n in range(300)
    ]
    for number, said in enumerate(await outcomes(*tasks)):
        assert isinstance(said, InferenceAnswer)
        assert said.request_id == str(number)
        np.testing.assert_allclose(said.outputs[OUTPUT], expected(images[number : number + 1]), rtol=1e-4)
    counts = loaded.statistics.snapshot()
    assert counts.success_count == len({name for name, *_ in ear.observed}) == 300
    assert counts.execution_count < 150
    assert not inference._scheduler._queues, "no queue keeps a model alive"


async def test_after_closing_nobody_waits_in_vain(ear: Ear, digits: Load) -> None:
    inference = Inference(ear, threads=1)
    loaded = digits(Batching())
    inference.close()
    with pytest.raises(Busy, match="the agent stops"):
        await asyncio.wait_for(inference.answer_later(loaded, request()), LONG_S)


async def test_closing_breaks_off_what_runs(ear: Ear, sleeper: Load) -> None:
    inference = Inference(ear, threads=1)
    task = await begun(inference.answer_later(sleeper(), taking(FOREVER)))
    await asyncio.sleep(0.1)
    begin = time.monotonic()
    await asyncio.to_thread(inference.close)
    assert time.monotonic() - begin < 20
    with pytest.raises(ModelFailed, match="the run was broken off"):
        await asyncio.wait_for(task, LONG_S)


def test_outputs_that_are_not_by_row_are_no_answer() -> None:
    with pytest.raises(ModelFailed, match=r"output 'mean' has shape \[1, 4\] for a batch of 3 rows.*cannot be batched"):
        split({"mean": np.zeros((1, 4))}, [1, 2])
    with pytest.raises(ModelFailed, match=r"shape \[\]"):
        split({"mean": np.zeros(())}, [1, 2])


def test_large_parts_of_a_batch_are_views_and_small_ones_are_not() -> None:
    first, second = split({"small": np.zeros((3, 4)), "large": np.zeros((3, 100_000))}, [1, 2])
    assert first["small"].base is None
    assert second["large"].base is not None
    assert second["large"].shape == (2, 100_000)
