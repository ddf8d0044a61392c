"""An engine on an accelerator with ONNX Runtime behind it: no request fails because a GPU does."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from edge_agent.contract.errors import CallerError, ModelUnavailable
from edge_agent.contract.signature import Signature
from edge_agent.runtime.backend import BeyondRuntime, InferenceBackend, RunCancelled

_log = logging.getLogger(__name__)


def _nothing() -> None:
    """Nobody to call."""


class FallbackBackend:
    """Runs on ``engine`` until it fails, and from then on, that very request included, on what ``open_spare`` opens.

    A request that the spare fails on too is the model's own failure, or the request's: the engine goes on then. So it
    does after one that is merely more than it was built for, which the spare answers. Before :meth:`arm` is called, its
    errors are its own: it is being tested.

    Args:
        engine: Owned, and closed with this one.
        open_spare: Opens the same model on ONNX Runtime; called at most once, in the thread of the request that failed.
        on_failure: Told once, in that thread, when the engine is given up; must not block.
        on_close: Called once it is closed.
    Attributes:
        failure: Why the engine was given up; None while it runs.
    """

    def __init__(
        self,
        engine: InferenceBackend,
        *,
        open_spare: Callable[[], InferenceBackend],
        on_failure: Callable[[Exception], None],
        on_close: Callable[[], None] = _nothing,
    ) -> None:
        self._engine, self._open_spare, self._on_failure, self._on_close = engine, open_spare, on_failure, on_close
        self._armed = False
        self._spare: InferenceBackend | None = None
        self.failure: Exception | None = None
        self._closed = False
        self._opening = threading.Lock()
        self.signature: Signature = engine.signature

    @property
    def platform(self) -> str:
        """That of what runs now."""
        spare = self._spare
        return spare.platform if self.failure is not None and spare is not None else self._engine.platform

    def arm(self) -> None:
        """The engine has passed its tests, and is about to serve."""
        self._armed = True

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch; see :class:`edge_agent.runtime.backend.InferenceBackend`."""
        spare = self._spare
        if self.failure is not None and spare is not None:
            return spare.infer(inputs)
        try:
            return self._engine.infer(inputs)
        except (CallerError, ModelUnavailable, RunCancelled):
            raise  # the request's own fault, or somebody's wish: not the engine's
        except BeyondRuntime as error:
            if not self._armed:
                raise
            return self._spare_for(error).infer(inputs)
        except Exception as error:  # drivers and runtimes raise what they like
            if not self._armed:
                raise
            return self._instead(inputs, error)

    def cancel(self) -> None:
        """Break off the runs in progress, wherever they are."""
        self._engine.cancel()
        spare = self._spare
        if spare is not None:
            spare.cancel()

    def close(self) -> None:
        """Give the memory of both back."""
        with self._opening:
            self._closed = True
            spare, self._spare = self._spare, None
        with contextlib.ExitStack() as then:  # whatever a driver raises on the way
            then.callback(self._on_close)
            if spare is not None:
                then.callback(spare.close)
            self._engine.close()

    def _instead(self, inputs: Mapping[str, NDArray[Any]], error: Exception) -> dict[str, NDArray[Any]]:
        """The spare's answer to a request that the engine failed on; the engine's error where there is no spare."""
        outputs = self._spare_for(error).infer(inputs)
        with self._opening:
            is_first = self.failure is None
            self.failure = self.failure or error
        if is_first:
            self._on_failure(error)
        return outputs

    def _spare_for(self, error: Exception) -> InferenceBackend:
        try:
            return self._opened()
        except ModelUnavailable:
            raise
        except Exception as unopened:
            raise error from unopened

    def _opened(self) -> InferenceBackend:
        with self._opening:
            if self._closed:
                raise ModelUnavailable("the model was closed meanwhile; ask again")
            if self._spare is None:
                self._spare = self._open_spare()
            return self._spare
