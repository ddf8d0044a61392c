"""What tests of the serving core share: an observer, requests, and what comes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import (
    CallerError,
)
from edge_agent.runtime.slots import LoadedModel
from edge_agent.serving.request import InferenceAnswer, InferenceRequest
from tests.fakes.frames_device import GatedBackend
from tests.fakes.packages import (
    INPUT,
    OUTPUT,
    PIXELS,
    answer,
    model_weights,
    reference_images,
)

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


def request(images: NDArray[np.float32] | None = None, name: str = "", **named: Any) -> InferenceRequest:
    return InferenceRequest(name, {INPUT: reference_images(1) if images is None else images}, **named)


def taking(turns: float, name: str = "", **named: Any) -> InferenceRequest:
    """A request for one row that keeps "sleeper" busy for so many turns."""
    image = np.zeros((1, PIXELS), np.float32)
    image[0, 0] = turns
    return request(image, name, **named)


def expected(images: NDArray[np.float32]) -> NDArray[np.float32]:
    return answer(*model_weights(), images)


def held(loaded: LoadedModel) -> GatedBackend:
    """Have every run of a model wait until its gate is opened: whatever is to happen meanwhile surely does."""
    gated = GatedBackend(loaded.backend)
    loaded.backend = gated
    return gated


async def running(gated: GatedBackend, runs: int = 1) -> None:
    """Wait until so many runs wait at the gate."""
    for _ in range(int(LONG_S / 0.001)):
        if gated.started >= runs:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"only {gated.started} of {runs} runs have begun")


async def begun(work: Coroutine[Any, Any, InferenceAnswer]) -> asyncio.Task[InferenceAnswer]:
    """A task that has come to its first wait."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def outcomes(*tasks: asyncio.Task[InferenceAnswer]) -> list[InferenceAnswer | BaseException]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LONG_S)
