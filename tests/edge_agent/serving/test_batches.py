"""The serving core with real models that are run in batches, and when things go wrong."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from edge_agent.contract.errors import (
    Busy,
    DeadlineExceeded,
    ModelFailed,
    SignatureMismatch,
)
from edge_agent.contract.manifest import Batching, Overflow
from edge_agent.serving.inference import Inference, split
from edge_agent.serving.request import InferenceAnswer
from tests.edge_agent.serving.inference_parts import (
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
    OUTPUT,
    PIXELS,
    reference_images,
)


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
    gated = held(loaded)
    tasks = [await begun(inference.answer_later(loaded, taking(0)))]
    tasks += [await begun(inference.answer_later(loaded, taking(0))) for _ in range(5)]
    gated.gate.set()
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
    gated = held(loaded)
    tasks = [await begun(inference.answer_later(loaded, taking(0))) for _ in range(3)]
    with pytest.raises(Busy, match="model 'sleeper': 2 requests wait already, which is all its queue holds"):
        await inference.answer_later(loaded, taking(0))
    gated.gate.set()
    assert all(isinstance(said, InferenceAnswer) for said in await outcomes(*tasks))
    assert (loaded.requests, loaded.failed, ear.failures) == (3, 0, 0)
    assert loaded.statistics.snapshot().fail_count == 1


async def test_drop_oldest_refuses_the_oldest_of_the_least_urgent(inference: Inference, sleeper: Load) -> None:
    loaded = sleeper(Batching(max_rows=4, max_queue=2, overflow=Overflow.DROP_OLDEST))
    gated = held(loaded)
    busy = await begun(inference.answer_later(loaded, taking(0)))
    urgent = await begun(inference.answer_later(loaded, taking(0, priority=1)))
    oldest = await begun(inference.answer_later(loaded, taking(0)))
    newest = await begun(inference.answer_later(loaded, taking(0)))
    with pytest.raises(Busy, match="its queue is full, and newer requests came"):
        await asyncio.wait_for(oldest, LONG_S)
    assert not busy.done()
    gated.gate.set()
    assert all(isinstance(said, InferenceAnswer) for said in await outcomes(busy, urgent, newest))


async def test_the_policy_s_own_deadline_holds_where_a_request_says_nothing(
    inference: Inference, sleeper: Load
) -> None:
    loaded = sleeper(Batching(max_rows=4, timeout_us=20_000))
    gated = held(loaded)
    busy = await begun(inference.answer_later(loaded, taking(0)))
    with pytest.raises(DeadlineExceeded, match=r"batching\.timeout_us in the package's manifest allows 20 ms; not run"):
        await asyncio.wait_for(inference.answer_later(loaded, taking(0)), LONG_S)
    patient = await begun(inference.answer_later(loaded, taking(0, timeout_us=60_000_000)))
    gated.gate.set()
    assert all(isinstance(said, InferenceAnswer) for said in await outcomes(busy, patient))


async def test_an_application_that_vanishes_while_it_waits_leaves_the_queue(
    inference: Inference, ear: Ear, sleeper: Load
) -> None:
    loaded = sleeper(Batching(max_rows=4))
    gated = held(loaded)
    busy = await begun(inference.answer_later(loaded, taking(0, "busy")))
    gone = await begun(inference.answer_later(loaded, taking(0, "gone")))
    stays = await begun(inference.answer_later(loaded, taking(0, "stays")))
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert not busy.done()
    assert inference.waiting(loaded) == 1
    gated.gate.set()
    await outcomes(busy, stays)
    assert [name for name, *_ in ear.observed] == ["busy", "stays"]


async def test_an_application_that_vanishes_during_its_run_holds_the_model_until_that_ends(
    inference: Inference, sleeper: Load
) -> None:
    loaded = sleeper(Batching(max_rows=4))
    gated = held(loaded)
    gone = await begun(inference.answer_later(loaded, taking(0)))
    await running(gated)
    gone.cancel()
    await asyncio.sleep(0)
    assert not gone.done(), "its lease must outlive the run"
    gated.gate.set()
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
