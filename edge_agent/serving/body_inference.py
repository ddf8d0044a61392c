"""One inference from body to body for the single-file application; goes when that does."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edge_agent.contract.errors import CallerError, ShoalError
from edge_agent.runtime.slots import LoadedModel
from edge_agent.serving.body_codec import InferenceRequest, check_outputs, decode_request, encode_response
from edge_agent.serving.inference import Observer, RequestIds

log = logging.getLogger(__name__)


class BodyInference:
    """Answers inference requests of one model at a time.

    Args:
        max_rows: Rows that one request may hold.
    """

    def __init__(self, observer: Observer, *, max_rows: int) -> None:
        self._observer, self._max_rows = observer, max_rows
        self._ids = RequestIds()

    def answer(self, loaded: LoadedModel, body: bytes, json_length: int | None) -> tuple[bytes, int | None]:
        """The answer's body, and the length of its JSON part where raw tensors follow it.

        Args:
            loaded: Leased by the caller.
            json_length: The request's ``Inference-Header-Content-Length``.
        Raises:
            CallerError: The request is wrong; counted as refused.
            ShoalError: The model failed on a right request; counted as failed.
        """
        begin = time.perf_counter()
        monitored = True
        try:
            request = decode_request(body, json_length, loaded.signature, max_rows=self._max_rows)
            monitored = request.monitored
            check_outputs(request, loaded.signature)
            inputs = loaded.check(request.inputs).inputs
            outputs = self._run(loaded, inputs, monitored=monitored)
        except CallerError as error:
            if monitored:
                self._observer.refused(loaded, error)
            raise
        request_id = request.id or self._ids.new()
        wanted = False
        if monitored:
            latency_us = (time.perf_counter() - begin) * 1e6
            loaded.count()
            wanted = self._observe(loaded, request_id, request, outputs, latency_us)
        return encode_response(
            request,
            outputs,
            model=loaded.name,
            version=loaded.version,
            request_id=request_id,
            parameters={"package": loaded.digest, "label_wanted": wanted},
        )

    def _observe(
        self,
        loaded: LoadedModel,
        request_id: str,
        request: InferenceRequest,
        outputs: Mapping[str, NDArray[Any]],
        latency_us: float,
    ) -> bool:
        try:
            return self._observer.observe(
                loaded, request_id, request.inputs, outputs, latency_us=latency_us, group=request.group
            )
        except Exception:
            # The application has its answer coming, whatever is wrong with what is watched beside it.
            log.exception("a request of model %s %s could not be observed", loaded.name, loaded.version)
            return False

    def _run(
        self, loaded: LoadedModel, inputs: Mapping[str, NDArray[Any]], *, monitored: bool
    ) -> dict[str, NDArray[Any]]:
        try:
            return loaded.backend.infer(inputs)
        except CallerError:
            raise
        except Exception as error:
            # A runtime may raise anything; whatever it is, this request was right and the model is not.
            if monitored:
                loaded.count(failed=True)
                self._observer.failed(loaded)
            log.warning("model %s %s failed on a request: %s", loaded.name, loaded.version, error)
            raise ShoalError(
                f"model '{loaded.name}' version '{loaded.version}' failed on this input: {error}"
            ) from error
