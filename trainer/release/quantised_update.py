"""Weights rounded so that what changed since the parent package is a few bits per weight.

``released = base + fp32(step * code)``, tensor by tensor: base is the parent's, a code is a small whole number, and the
step is a share (the factor) of the root mean square of what training changed in that tensor. A device that has the
parent needs the codes alone. The released weights are what is judged, measured and signed; the exact ones are not kept.

Codes are the nearest whole numbers, but for a few of each row of weights (of each output, that is) that go to the
next one, so that the row's errors sum up to less than a step: inputs of a layer are mostly positive, and with a mean
error an output would be off on all of them alike. It takes no more bits, and answers move a quarter to a half less far
(measured on digits and on a network of 25 million weights).

The arithmetic is the same on every machine: a step has so few significant bits that ``step * code`` is exact in fp32,
so that one rounding is left, with or without a fused multiply-add. ADR 0021 says why it is done so.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edge_agent.contract.stored_tensors import StoredFile, StoredTensor, StoredType
from edge_agent.runtime.package import file_digest
from trainer.errors import UpdateNotQuantisable
from trainer.release.export import WEIGHTS_FILE
from trainer.release.stored import stored_tensors

# Codes of at most 15 bits and their sign, times a step of 9 significant bits: 24 bits, all that fp32 has.
MOST_CODE = 32_767
_STEP_BITS = 9
# Smaller ones are subnormal numbers, or their products are; some processors make 0 of these.
_LEAST_STEP, _MOST_STEP = 2.0**-100, 2.0**100
# Fewer weights are not worth a step of their own; a tensor of one axis is a bias, a scale, a mean, a constant.
_LEAST_COUNT, _LEAST_AXES = 256, 2
_CHUNK = 1 << 20

Weights = NDArray[np.float32]
Codes = NDArray[np.int32]


@dataclass(frozen=True)
class RoundedTensor:
    """What became of one tensor.

    Args:
        step: None where it is released as it was trained.
        bits: Entropy of its codes, bits per weight; 0 where it has no step.
    """

    name: str
    count: int
    step: float | None
    bits: float = 0.0


@dataclass(frozen=True)
class RoundedUpdate:
    """A file of weights that were rounded.

    Args:
        factor: Steps in root mean squares of the tensors' updates.
        layout: Of the file, with base and steps, as ``tensors.json`` names them.
    """

    factor: float
    layout: StoredFile
    tensors: tuple[RoundedTensor, ...]
    size_bytes: int

    @property
    def bits(self) -> float:
        """Entropy of the codes, bits per weight that has a step."""
        rounded = [tensor for tensor in self.tensors if tensor.step is not None]
        return sum(tensor.bits * tensor.count for tensor in rounded) / sum(tensor.count for tensor in rounded)


class Difference:
    """A model's weights beside those of the package that it was trained from.

    Args:
        model, parent: ONNX files with their weights beside them.
    Raises:
        UpdateNotQuantisable: They are not the same tensors, or nothing in them could be rounded.
    """

    def __init__(self, model: Path, parent: Path) -> None:
        self._weights, self._base = model.with_name(WEIGHTS_FILE), parent.with_name(WEIGHTS_FILE)
        layout = stored_tensors(model).files.get(WEIGHTS_FILE)
        before = stored_tensors(parent).files.get(WEIGHTS_FILE)
        if layout is None or before is None:
            which = "the model" if layout is None else "its parent"
            raise UpdateNotQuantisable(f"{which} has no weights in a file of their own")
        self._layout = layout
        shapes, parents = _shapes(model), _shapes(parent)
        self._large = {
            tensor.name: shapes[tensor.name]
            for tensor in layout.tensors
            if tensor.dtype is StoredType.FP32
            and tensor.count >= _LEAST_COUNT
            and len(shapes[tensor.name]) >= _LEAST_AXES
        }
        if not self._large:
            raise UpdateNotQuantisable("no tensor is large enough to be rounded")
        self._at = {tensor.name: tensor.offset for tensor in before.tensors}
        kinds = {tensor.name: tensor.dtype for tensor in before.tensors}
        for name in sorted(self._large):
            if name not in kinds:
                raise UpdateNotQuantisable(f"the parent has no tensor '{name}'")
            if shapes[name] != parents[name] or kinds[name] is not StoredType.FP32:
                mine, its = list(shapes[name]), list(parents[name])
                raise UpdateNotQuantisable(f"tensor '{name}' is fp32{mine}, the parent's {kinds[name].value}{its}")

    def round_to(self, target: Path, *, factor: float) -> RoundedUpdate:
        """Write the rounded weights.

        Args:
            target: The file to write; it may not be one of the two.
            factor: Above 0; the larger, the coarser.
        Raises:
            UpdateNotQuantisable: Nothing changed, or what changed cannot be rounded.
        """
        shutil.copyfile(self._weights, target)
        said, tensors = [], []
        for tensor in self._layout.tensors:
            step, bits = self._round(target, tensor, factor) if tensor.name in self._large else (None, 0.0)
            said.append(RoundedTensor(tensor.name, tensor.count, step, bits))
            tensors.append(
                StoredTensor(name=tensor.name, dtype=tensor.dtype, offset=tensor.offset, count=tensor.count, step=step)
            )
        if all(tensor.step is None for tensor in said):
            raise UpdateNotQuantisable("no large tensor changed in a way that can be rounded")
        return RoundedUpdate(
            factor=factor,
            layout=StoredFile(tensors=tuple(tensors), base=file_digest(self._base)),
            tensors=tuple(said),
            size_bytes=target.stat().st_size,
        )

    def _round(self, target: Path, tensor: StoredTensor, factor: float) -> tuple[float | None, float]:
        """Round one tensor in the target; its step and the bits of its codes, or None and 0 where it stays."""
        base = np.memmap(self._base, np.dtype("<f4"), "r", self._at[tensor.name], (tensor.count,))
        weights = np.memmap(target, np.dtype("<f4"), "r+", tensor.offset, (tensor.count,))
        step = step_of(base, weights, factor)
        if step is None:
            return None, 0.0
        counts: dict[int, int] = {}
        row = tensor.count // self._large[tensor.name][0]
        rows = max(1, _CHUNK // row)
        for at in range(0, tensor.count, rows * row):
            part = slice(at, at + rows * row)
            codes = balanced_codes(base[part], weights[part], step, row=row)
            values, times = np.unique(codes, return_counts=True)
            for value, many in zip(values.tolist(), times.tolist(), strict=True):
                counts[value] = counts.get(value, 0) + many
            weights[part] = apply_codes(base[part], step, codes)
        weights.flush()
        return step, _entropy(np.array(list(counts.values()), dtype=np.float64))


def step_of(base: Weights, weights: Weights, factor: float) -> float | None:
    """The step of a tensor: factor times the root mean square of the weights that changed, to 9 significant bits.

    Returns:
        None where nothing changed, a value is not finite, or a code would not fit: such a tensor stays as it is.
    """
    squares, changed, most = [], 0, 0.0
    for at in range(0, len(base), _CHUNK):
        with np.errstate(invalid="ignore"):  # of infinite ones
            update = weights[at : at + _CHUNK].astype(np.float64) - base[at : at + _CHUNK]
        squares.append(float(np.square(update).sum()))
        changed += int(np.count_nonzero(update))
        most = max(most, float(np.abs(update).max()))
    # One value that is no number makes none of the sum too.
    if not changed or not math.isfinite(total := math.fsum(squares)):
        return None
    step = _coarse(factor * math.sqrt(total / changed))
    if not _LEAST_STEP <= step <= _MOST_STEP or most > step * MOST_CODE:
        return None
    return step


def codes_of(base: Weights, weights: Weights, step: float) -> Codes:
    """The nearest whole number of steps from the base, weight by weight."""
    update = weights.astype(np.float64) - base
    return np.rint(update / step).astype(np.int32)


def balanced_codes(base: Weights, weights: Weights, step: float, *, row: int) -> Codes:
    """The nearest codes, but for a few of each row that go to the next ones, so that its errors even out.

    Args:
        base, weights: [N * row], the weights of one output after those of the other.
    Returns:
        Codes at most one step away from the exact weights, of which each row's sum is at most half a step off.
    """
    wanted = (weights.astype(np.float64) - base).reshape(-1, row) / step
    codes = np.rint(wanted)
    errors = wanted - codes
    missing = np.rint(errors.sum(axis=1))
    some = np.flatnonzero(missing)
    # Those that were rounded the furthest the wrong way; equal ones in order, so that no machine chooses otherwise.
    order = np.argsort(-np.sign(missing[some])[:, None] * errors[some], axis=1, kind="stable")
    at, place = np.nonzero(np.arange(row) < np.abs(missing[some])[:, None])
    codes[some[at], order[at, place]] += np.sign(missing[some])[at]
    return codes.reshape(-1).astype(np.int32)


def apply_codes(base: Weights, step: float, codes: Codes) -> Weights:
    """``base + fp32(step * code)``: what the step in ``tensors.json`` means, two operations in fp32."""
    return np.asarray(base + np.float32(step) * codes.astype(np.float32), dtype=np.float32)


def _coarse(value: float) -> float:
    """The number to 9 significant bits."""
    if value == 0.0 or not math.isfinite(value):
        return 0.0
    part, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(part, _STEP_BITS)), exponent - _STEP_BITS)


def _entropy(counts: NDArray[np.float64]) -> float:
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # of a single value it would be -0


def _shapes(model: Path) -> dict[str, tuple[int, ...]]:
    graph = onnx.load(str(model), load_external_data=False).graph
    return {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
