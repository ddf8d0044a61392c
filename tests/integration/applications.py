"""Applications that ask an agent for models on every way in, without a pause, while something happens to it."""

from __future__ import annotations

import collections
import random
import threading
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tests.fakes.packages import OUTPUT
from tests.integration.attacked_agent import TRANSPORTS, AttackedAgent
from tests.integration.hostile_requests import EXPECTED, Request


class Applications:
    """One thread per way in and model, for the length of a ``with`` block.

    Args:
        right: What a model may answer.
        pause_s: The longest pause between two requests.
    Attributes:
        statuses: How often which way in answered what.
        wrong: Neither a right answer nor a 503: the first few.
    """

    def __init__(
        self,
        device: AttackedAgent,
        models: Sequence[str],
        *,
        right: Sequence[NDArray[Any]] = (EXPECTED,),
        pause_s: float = 0.0,
    ) -> None:
        self.statuses: collections.Counter[tuple[str, int]] = collections.Counter()
        self.wrong: list[str] = []
        self._device, self._right, self._pause_s = device, right, pause_s
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(transport, model)) for transport in TRANSPORTS for model in models
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def answered(self) -> int:
        """Right answers."""
        return sum(count for (_, status), count in self.statuses.items() if status == 200)

    @property
    def refused(self) -> int:
        """How often one was told that the model is not there now."""
        return sum(count for (_, status), count in self.statuses.items() if status == 503)

    def _ask(self, transport: str, model: str) -> None:
        while not self._over.wait(random.random() * self._pause_s):
            try:
                outcome = self._device.ask(transport, Request(model=model))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                self._note(f"{transport} {model}: {error!r}")
                continue
            self.statuses[transport, outcome.status] += 1
            right = outcome.status == 503
            if outcome.status == 200:
                found = outcome.outputs[OUTPUT]
                right = any(np.allclose(found, expected, rtol=1e-4, atol=1e-6) for expected in self._right)
            if not right:
                self._note(f"{transport} {model}: {outcome}")

    def _note(self, text: str) -> None:
        if len(self.wrong) < 20:
            self.wrong.append(text)
