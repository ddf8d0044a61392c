"""Models on ONNX Runtime, on the CPU or on another of its execution providers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_agent.contract.errors import ModelFailed, ModelUnavailable, PackageError, SignatureMismatch
from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.backend import RunCancelled
from edge_agent.runtime.onnx_session import CPU_PROVIDER, open_session, run_options
from edge_agent.runtime.optimised import OptimisedModels
from edge_agent.runtime.package import Package

# A run far smaller than the largest of late has no use for the memory which that one took; after so many of them it is
# given back. To shrink costs nothing, to grow again a page fault per 4 KiB: a CNN took 200 ms for 64 rows, not 160.
_FAR_FEWER = 2
_LONG_OVER = 12


class OnnxBackend:
    """One variant of a package in an ONNX Runtime session.

    Args:
        threads: Threads within one inference; they sleep between inferences instead of spinning.
        cache: Where optimised models are kept.
        provider: Which of the runtime's execution providers runs it.
    Raises:
        PackageError: The package has no such variant.
        ModelLoadFailed: The runtime refuses the model, or the model differs from the manifest's signature.
        AcceleratorUnavailable: The runtime cannot use the provider here.
    """

    platform = "onnx_onnxv1"

    def __init__(
        self,
        package: Package,
        *,
        variant: str = "fp32",
        threads: int = 1,
        cache: OptimisedModels | None = None,
        provider: str = CPU_PROVIDER,
    ) -> None:
        manifest = package.manifest
        if variant not in manifest.variants:
            raise PackageError(f"{package.folder}: no variant {variant!r}; it has: {sorted(manifest.variants)}")
        session = open_session(package, variant=variant, threads=threads, cache=cache, provider=provider)
        self.signature: Signature = manifest.signature
        self._outputs = tuple(spec.name for spec in self.signature.outputs)
        self._text_inputs = tuple(spec.name for spec in self.signature.inputs if spec.datatype is Datatype.BYTES)
        self._text_outputs = tuple(spec.name for spec in self.signature.outputs if spec.datatype is Datatype.BYTES)
        self._session: Any = session
        self._names = list(self._outputs)
        self._input_count = len(self.signature.inputs)
        self._run: Callable[..., list[Any]] = _runner(session)
        self._run_options, self._shrinking = run_options(), run_options(shrink=True)
        self._most_rows = self._fewer = 0
        #: Rows that come together at any time: memory for so many is kept. A CNN's process that gave it back, and took
        #: it again, six times held 11 MB more, in holes between what lives longer.
        self.usual_rows = 1

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch; see :class:`edge_agent.runtime.backend.InferenceBackend`.

        Raises:
            SignatureMismatch: A BYTES element is no UTF-8 text, which is all that ONNX strings can hold.
        """
        if self._text_inputs:
            inputs = {**inputs, **{name: _decoded(name, inputs[name]) for name in self._text_inputs}}
        if len(inputs) != self._input_count:  # the runtime finds a wrong name, but not every missing one
            raise ModelFailed(f"the model takes {self._input_count} inputs, got {sorted(inputs)}")
        rows = len(next(iter(inputs.values())))
        options = self._run_options if rows == self._most_rows else self._options_for(rows)
        try:
            outputs = dict(zip(self._outputs, self._run(self._names, inputs, options)))  # noqa: B905 - 0.1 us
        except Exception as error:
            # The runtime says so only in the text of its error.
            if options.terminate:
                raise RunCancelled(str(error)) from error
            raise
        for name in self._text_outputs:
            outputs[name] = _encoded(outputs[name])
        return outputs

    def cancel(self) -> None:
        """Let the runs in progress end with :class:`RunCancelled`, before their next node."""
        # All runs share two objects, as making one per run costs more than the rest; who comes later finds new ones.
        running = self._run_options, self._shrinking
        self._run_options, self._shrinking = run_options(), run_options(shrink=True)
        for options in running:
            options.terminate = True

    def _options_for(self, rows: int) -> Any:
        """Those that give memory back where a large batch is long over; else what it took stays, and is used again.

        Whoever counts wrong because threads meet here shrinks a run sooner or later, which is no harm.
        """
        if rows * _FAR_FEWER >= self._most_rows or self._most_rows <= self.usual_rows:
            self._most_rows, self._fewer = max(rows, self._most_rows), 0
            return self._run_options
        self._fewer += 1
        if self._fewer < _LONG_OVER:
            return self._run_options
        self._most_rows, self._fewer = rows, 0
        return self._shrinking

    def close(self) -> None:
        """Give the session's memory back, once the runs in progress have ended."""
        self._session, self._run = None, _closed


def _closed(*_: Any) -> list[Any]:
    raise ModelUnavailable("the model was closed meanwhile; ask again")


def _runner(session: ort.InferenceSession) -> Callable[..., list[Any]]:
    """What runs the session: takes output names, inputs and run options.

    The runtime's own wrapper in Python costs 1.0 of 4.7 us for checks that are made here already (names against the
    signature, arrays of numpy alone) and for falling back to another execution provider, which there is not. Run
    options of our own are no price for being able to cancel: without them the runtime makes some for each run (0.7 us).
    """
    native = getattr(session, "_sess", None)
    run: Callable[..., list[Any]] = getattr(native, "run", session.run)
    return run


def _decoded(name: str, array: NDArray[Any]) -> NDArray[Any]:
    out = np.empty(array.size, dtype=object)
    index = 0
    try:
        for index, element in enumerate(array.ravel()):
            out[index] = element if isinstance(element, str) else bytes(element).decode()
    except UnicodeDecodeError as error:
        row = int(np.unravel_index(index, array.shape)[0])
        raise SignatureMismatch(name, rule="datatype", detail=f"is no UTF-8 text: {error}", row=row) from error
    return out.reshape(array.shape)


def _encoded(array: NDArray[Any]) -> NDArray[Any]:
    out = np.empty(array.size, dtype=object)
    out[:] = [element.encode() if isinstance(element, str) else element for element in array.ravel()]
    return out.reshape(array.shape)
