"""What every runtime offers: one loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from edge_agent.contract.errors import ModelFailed
from edge_agent.contract.signature import Signature


class BeyondRuntime(ModelFailed):
    """A request that is right, but more than this runtime was made ready for; ONNX Runtime takes it."""


class RunCancelled(Exception):
    """A run was broken off by :meth:`InferenceBackend.cancel`; what it was given may be right."""


class InferenceBackend(Protocol):
    """One loaded model on one runtime. ``infer`` may be called from several threads at once."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs."""

    @property
    def platform(self) -> str:
        """What the protocol's model metadata calls it: ``onnx_onnxv1``."""

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch.

        Args:
            inputs: By name, as ``Signature.check`` returned them; axis 0 is N.
        Returns:
            By output name, in the signature's order, owned by the caller; BYTES as object arrays of ``bytes``.
        Raises:
            RunCancelled: ``cancel`` was called meanwhile.
            Exception: Whatever else the runtime raises; the request failed though it was right.
        """

    def cancel(self) -> None:
        """Let the runs in progress fail soon, from any thread; later runs are not concerned."""

    def close(self) -> None:
        """Give the memory back; no ``infer`` may follow."""
