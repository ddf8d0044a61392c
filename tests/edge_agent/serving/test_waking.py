"""Sleeping models are woken once for all who wait, and nobody else waits with them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from edge_agent.contract.errors import BudgetExceeded
from edge_agent.serving.inference import Inference


class Nobody:
    """Watches nothing."""

    def observe(self, *_: Any, **__: Any) -> bool:
        return False

    def refused(self, *_: Any) -> None:
        pass

    def failed(self, *_: Any) -> None:
        pass


class SlowRepository:
    """Wakes a model when the gate opens."""

    def __init__(self, *, fails: bool = False) -> None:
        self.gate, self.fails = threading.Event(), fails
        self.woken: list[tuple[str, str | None]] = []

    def wake(self, model: str, version: str | None = None) -> None:
        self.woken.append((model, version))
        assert self.gate.wait(30)
        if self.fails:
            raise BudgetExceeded("no memory")


@pytest.fixture
def inference() -> Iterator[Inference]:
    one = Inference(Nobody(), threads=1)
    yield one
    one.close()


async def test_those_who_wait_for_one_model_wait_for_one_load(inference: Inference) -> None:
    repository = SlowRepository()
    waiting = [asyncio.ensure_future(inference.wake(repository, "a", None)) for _ in range(20)]
    other = asyncio.ensure_future(inference.wake(repository, "b", "1"))
    await asyncio.sleep(0.05)
    assert await asyncio.wait_for(inference.in_thread(lambda: "decoded"), 10) == "decoded"
    waiting[0].cancel()  # the one who came first goes away
    repository.gate.set()
    done = await asyncio.gather(*waiting, other, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert done[1:] == [None] * 20
    assert repository.woken == [("a", None), ("b", "1")]


async def test_all_are_told_why_it_cannot_be_woken_and_the_next_one_tries_again(inference: Inference) -> None:
    repository = SlowRepository(fails=True)
    repository.gate.set()
    done = await asyncio.gather(*(inference.wake(repository, "a", None) for _ in range(5)), return_exceptions=True)
    assert [type(one) for one in done] == [BudgetExceeded] * 5
    with pytest.raises(BudgetExceeded):
        await inference.wake(repository, "a", None)
    assert len(repository.woken) == 2
