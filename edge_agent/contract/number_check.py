"""One tensor of numbers against its constraint.

Its smallest and its largest element settle the usual case, in which nothing is wrong: they are compared in an order in
which a NaN fails too; where the range begins at 0, the largest of their bits does. Masks are made only for what failed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.constraint import Policy, Rule
from edge_agent.contract.constraint_sense import value_range
from edge_agent.contract.form_check import FormCheck
from edge_agent.contract.signature import TensorSpec
from edge_agent.contract.violations import Findings, Violation, listed, range_fault

_lowest, _highest = np.minimum.reduce, np.maximum.reduce
# Up to so many elements to ask where the extreme is, and for that element, takes a third of a reduction's time.
_SMALL = 16_384
# As whole numbers, the bits of floats from 0 on have the order of the floats, and those of all other floats, NaN among
# them, are larger: one look instead of two, a third less of the check of an image.
_BITS: dict[int, np.dtype[Any]] = {2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}
# Up to so many elements a set of Python's numbers is faster than numpy's sorting (1.5 us against 15 us).
_FEW = 128


class NumberCheck:
    """Checks one numeric input; may be called from several threads.

    Args:
        spec: Its datatype is not BYTES.
    """

    def __init__(self, spec: TensorSpec) -> None:
        self.name = spec.name
        self._spec, self._form = spec, FormCheck(spec)
        self._dtype, self._tail = spec.datatype.numpy, self._form.tail
        low, high = value_range(spec.datatype, spec.constraint)
        self._range = (low, high)
        self._float = self._dtype.kind == "f"
        if self._float and low is None and high is None:
            low = -np.inf  # below every number, and not below NaN, which the comparison is to find
        # As the datatype holds them: 0.1 in FP32 is within a maximum of 0.1, though a little above.
        self._low = None if low is None else self._dtype.type(low).item()
        self._high = None if high is None else self._dtype.type(high).item()
        allowed = spec.constraint.allowed
        self._allowed = np.array(allowed or (), dtype=self._dtype)
        self._allowed_set = None if allowed is None else frozenset(self._allowed.tolist())
        self._from_zero = self._float and self._low == 0.0 and self._high is not None and self._high > 0.0
        self._bits = _BITS.get(self._dtype.itemsize, self._dtype)
        self._high_bits = int(np.array(self._high, self._dtype).view(self._bits)) if self._from_zero else 0

    def __call__(self, array: NDArray[Any], found: list[Violation]) -> NDArray[Any]:
        """The array as the model may see it: itself, or a copy where something had to change.

        Args:
            array: Never written to.
            found: Takes violations that are let through.
        Raises:
            SignatureMismatch: Datatype, shape or a value breaks the signature.
        """
        shape = array.shape
        if array.dtype is not self._dtype or shape[1:] != self._tail or not shape[0]:
            array = self._form.conform(array)
        low, high = self._low, self._high
        if self._from_zero and array.size > _SMALL and self._is_within(array):
            within = True
        elif array.size <= _SMALL:  # both find a NaN where there is one
            within = (low is None or low <= array.item(array.argmin())) and (
                high is None or array.item(array.argmax()) <= high
            )
        else:
            within = (low is None or low <= _lowest(array, None).item()) and (
                high is None or _highest(array, None).item() <= high
            )
        if within and (self._allowed_set is None or self._all_allowed(array, self._allowed_set)):
            return array
        with np.errstate(all="ignore"):  # comparing a signalling NaN is no accident here
            return self._judge(array, found)

    def _is_within(self, array: NDArray[Any]) -> bool:
        """Whether all elements surely are from 0 on to the maximum; -0.0 is not, for one."""
        return bool(_highest(array.view(self._bits), None) <= self._high_bits)

    def _all_allowed(self, array: NDArray[Any], allowed: frozenset[Any]) -> bool:
        if array.size <= _FEW:
            return allowed.issuperset(array.ravel().tolist())
        return not self._not_allowed(array).any()

    def _judge(self, array: NDArray[Any], found: list[Violation]) -> NDArray[Any]:
        """Rule by rule: what each says is wrong, and what becomes of it."""
        limits = self._spec.constraint
        findings = Findings(self._spec, array.shape, found)
        values = array
        if self._float:
            findings.missing(np.isnan(array).ravel())
        outside = self._outside(values).ravel() & ~findings.settled
        if outside.any():
            value = values.ravel()[outside.argmax()]
            low = self._range[0]
            why = range_fault(limits, below=low is not None and value.item() < low)
            if findings.broken(Rule.RANGE, outside, str(value), why) is Policy.CLIP:
                values = np.clip(values, *self._range)  # NaN stays NaN
        if self._allowed_set is not None:
            wrong = self._not_allowed(values).ravel() & ~findings.settled
            if wrong.any():
                value = str(values.ravel()[wrong.argmax()])
                findings.broken(Rule.ENUMERATION, wrong, value, f"is not one of {listed(limits.allowed or ())}")
        # Filled last: a fill may lie outside the range on purpose, so that the model can tell it from a measurement.
        if findings.to_fill.any():
            fill = np.array(limits.fill, dtype=self._dtype)
            values = np.where(findings.to_fill.reshape(array.shape), fill, values)
        return values

    def _outside(self, array: NDArray[Any]) -> NDArray[np.bool_]:
        low, high = self._range
        outside = np.zeros(array.shape, dtype=bool)
        if low is not None:
            outside |= array < low
        if high is not None:
            outside |= array > high
        return outside

    def _not_allowed(self, array: NDArray[Any]) -> NDArray[np.bool_]:
        return np.isin(array, self._allowed, invert=True)
