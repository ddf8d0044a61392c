"""A package that answers many rows: the runtime and the contract checks of the device, row by row where it must be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.checking import Checked, InputCheck
from edge_agent.contract.errors import ManifestError, ModelFailed, SignatureMismatch
from edge_agent.contract.manifest import Batching
from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype
from edge_agent.contract.violations import Violation
from edge_agent.runtime.batchable import check_batchable
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package
from trainer.batch.errors import InputUnreadable

Inputs = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]
# Input bytes of one inference: what fits a processor's own cache beside the weights.
_RUN_BYTES = 1 << 20
_MOST_ROWS = 1024
_TEXT_BYTES, _OPEN_AXIS = 64, 1024


class Answered(NamedTuple):
    """Rows that were answered.

    Args:
        rows: Their positions among those asked, ascending, int64[M].
        outputs: By name; axis 0 is M.
        faults: Why the others were not, by position.
        noted: What was let through though it broke a rule.
    """

    rows: NDArray[np.int64]
    outputs: Outputs
    faults: dict[int, str]
    noted: list[Violation]


class _Segment(NamedTuple):
    begin: int
    end: int
    inputs: dict[str, NDArray[Any]]


class BatchModel:
    """A package that answers many rows; may be called from several threads at once.

    Args:
        variant: Which of its forms.
        outputs: Names of the outputs that are wanted beside the classification's.
        batch_rows: Rows of one inference; None chooses by the size of a row.
        threads: Within one inference.
    Raises:
        PackageError: The package lacks a part, or the runtime refuses the model.
        InputUnreadable: It has no such output, or is a pipeline.
    """

    def __init__(
        self,
        package: Package,
        *,
        variant: str = "fp32",
        outputs: tuple[str, ...] = (),
        batch_rows: int | None = None,
        threads: int = 1,
    ) -> None:
        manifest = package.manifest
        if manifest.pipeline:
            raise InputUnreadable(
                f"model '{manifest.name}' is a pipeline, which needs its steps loaded on a device: run a batch for each"
            )
        self.signature: Signature = manifest.signature
        known = [spec.name for spec in self.signature.outputs]
        if unknown := sorted(set(outputs) - set(known)):
            raise InputUnreadable(f"outputs: model '{manifest.name}' has no {unknown}; it has: {', '.join(known)}")
        self.package, self.task = package, manifest.task
        self._wanted = tuple(dict.fromkeys((manifest.task.output, *outputs)))
        self._check = InputCheck(_of_any_rows(self.signature))
        self._backend = OnnxBackend(package, variant=variant, threads=threads)
        fixed = {spec.shape[0] for spec in self.signature.inputs} - {None}
        self._fixed_rows = next(iter(fixed), None)
        self.dependent = self._dependence(package)
        self.batch_rows = 1 if self.dependent else self._fixed_rows or batch_rows or run_rows(self.signature)
        self.row_bytes = row_bytes(self.signature)

    def close(self) -> None:
        """Give the memory back."""
        self._backend.close()

    def answer(self, inputs: Inputs) -> Answered:
        """Check N rows and answer those that pass.

        Args:
            inputs: By name, as applications send them; axis 0 is N.
        """
        rows = len(next(iter(inputs.values())))
        faults: dict[int, str] = {}
        noted: list[Violation] = []
        segments: list[_Segment] = []
        for begin, end, checked in self._sifted(inputs, 0, rows, faults):
            segments.append(_Segment(begin, end, checked.inputs))
            noted.extend(checked.violations)
        runs = [run for segment in segments for run in self._answered(segment, faults)]
        if not runs:
            return Answered(np.empty(0, dtype=np.int64), {}, faults, noted)
        kept = [np.arange(first, last, dtype=np.int64) for first, last, _ in runs]
        joined = {name: _joined([outputs[name] for _, _, outputs in runs]) for name in self._wanted}
        return self._without_nonsense(Answered(np.concatenate(kept), joined, faults, noted))

    def _dependence(self, package: Package) -> str:
        """Why rows must be run one by one: the model answers a row otherwise in company. Empty where it does not."""
        if self._fixed_rows is not None:
            return "" if self._fixed_rows > 1 else "the model takes one row at a time"
        proven = msgspec.structs.replace(package.manifest, batching=Batching())
        try:
            check_batchable(self._backend, self._check, proven, package.golden())
        except ManifestError as error:
            return str(error)
        return ""

    def _sifted(
        self, inputs: Inputs, begin: int, end: int, faults: dict[int, str]
    ) -> Iterator[tuple[int, int, Checked]]:
        """Runs of rows that pass the check, in order; where it fails, each half is tried for itself."""
        try:
            found = self._check({name: array[begin:end] for name, array in inputs.items()})
        except SignatureMismatch as error:
            if end - begin == 1:
                faults[begin] = f"input '{error.tensor}': {error.rule}: {error.detail}"
                return
            # The row that the check names goes alone; the rest is tried in halves.
            at = begin + error.row if error.row is not None else begin
            half = (begin + end) // 2
            for low, high in pairwise(sorted({begin, at, at + 1, half, end})):
                yield from self._sifted(inputs, low, high, faults)
        else:
            yield begin, end, found

    def _answered(self, segment: _Segment, faults: dict[int, str]) -> Iterator[tuple[int, int, Outputs]]:
        for first in range(segment.begin, segment.end, self.batch_rows):
            last = min(segment.end, first + self.batch_rows)
            begin, end = first - segment.begin, last - segment.begin
            some = {name: array[begin:end] for name, array in segment.inputs.items()}
            yield from self._runs(_Segment(first, last, some), faults)

    def _runs(self, segment: _Segment, faults: dict[int, str]) -> Iterator[tuple[int, int, Outputs]]:
        """One inference; where it fails, each half is tried for itself, down to the row that is to blame."""
        begin, end, inputs = segment
        try:
            outputs = self._infer(inputs, end - begin)
        except Exception as error:  # noqa: BLE001 - whatever the runtime raises on a right row, the row is set aside
            if end - begin == 1:
                why = (str(error).strip() or type(error).__name__).splitlines()[0]
                faults[begin] = f"model: it fails on this row: {why[:300]}"
                return
            half = (end - begin) // 2
            for low, high in ((0, half), (half, end - begin)):
                some = {name: array[low:high] for name, array in inputs.items()}
                yield from self._runs(_Segment(begin + low, begin + high, some), faults)
        else:
            yield begin, end, {name: outputs[name] for name in self._wanted}

    def _infer(self, inputs: Inputs, rows: int) -> Outputs:
        fixed = self._fixed_rows
        if fixed is not None and rows != fixed:
            inputs = {name: np.resize(array, (fixed, *array.shape[1:])) for name, array in inputs.items()}
        outputs = self._backend.infer(inputs)
        for name in self._wanted:
            if len(outputs[name]) != (fixed or rows):
                raise ModelFailed(f"output '{name}' has {len(outputs[name])} rows for {rows}")
        return outputs if fixed is None else {name: outputs[name][:rows] for name in self._wanted}

    def _without_nonsense(self, answered: Answered) -> Answered:
        """Rows whose probabilities are no numbers are set aside: nobody could use the answer, and many would."""
        probabilities = answered.outputs[self.task.output]
        with np.errstate(invalid="ignore", over="ignore"):
            finite = np.isfinite(probabilities.reshape(len(probabilities), -1).sum(axis=1))
        if finite.all():
            return answered
        why = f"model: output '{self.task.output}' is not finite"
        faults = answered.faults | dict.fromkeys((int(row) for row in answered.rows[~finite]), why)
        outputs = {name: array[finite] for name, array in answered.outputs.items()}
        return Answered(answered.rows[finite], outputs, faults, answered.noted)


def _of_any_rows(signature: Signature) -> Signature:
    """The signature without a fixed batch axis, which :meth:`BatchModel.answer` fills by itself."""
    inputs = tuple(msgspec.structs.replace(spec, shape=(None, *spec.shape[1:])) for spec in signature.inputs)
    return msgspec.structs.replace(signature, inputs=inputs)


def _joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    if len(arrays) == 1:
        return arrays[0]
    if len({array.shape[1:] for array in arrays}) > 1:
        raise InputUnreadable("an output's shape differs between rows: it cannot be a column")
    return np.concatenate(arrays)


def run_rows(signature: Signature) -> int:
    """Rows of one inference: a fixed batch axis decides, else about 1 MiB of input.

    The number follows from the signature alone, so that a batch that is resumed elsewhere answers alike.
    """
    for spec in signature.inputs:
        if spec.shape[0] is not None:
            return spec.shape[0]
    return max(1, min(_MOST_ROWS, _RUN_BYTES // row_bytes(signature)))


def row_bytes(signature: Signature) -> int:
    """About how many bytes the inputs of a row take; open axes are guessed."""
    return sum(
        math.prod(axis or _OPEN_AXIS for axis in spec.shape[1:])
        * (_TEXT_BYTES if spec.datatype is Datatype.BYTES else spec.datatype.numpy.itemsize)
        for spec in signature.inputs
    )


def open_model(folder: Path, **settings: Any) -> BatchModel:
    """The model of a package folder, every file's digest verified; see :class:`BatchModel`."""
    return BatchModel(Package.open(folder, verify=True), **settings)
