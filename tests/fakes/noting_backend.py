"""A backend around another one, which notes in which threads it runs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edge_agent.runtime.backend import InferenceBackend


class NotingBackend:
    """Answers as the other one does."""

    def __init__(self, backend: InferenceBackend) -> None:
        self._backend = backend
        self.platform, self.signature = backend.platform, backend.signature
        self.cancel, self.close = backend.cancel, backend.close
        self.threads: list[str] = []

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """As :meth:`edge_agent.runtime.backend.InferenceBackend.infer`."""
        self.threads.append(threading.current_thread().name)
        return self._backend.infer(inputs)
