"""What a model takes and gives: names, datatypes, shapes and constraints, and the check of a request against them."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import ManifestError, MessageError, SignatureMismatch
from edge_agent.contract.tensors import Datatype, as_bytes


class Sensitivity(str, enum.Enum):
    """How far a tensor's values may travel."""

    PUBLIC = "public"
    MASKED = "masked"
    DEVICE_ONLY = "device-only"


class Constraint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the values of one tensor must satisfy.

    Args:
        minimum: Smallest allowed value, inclusive.
        maximum: Largest allowed value, inclusive.
        allowed: The only values allowed (numbers or text).
        nullable: Whether NaN (floats) or empty elements (BYTES) mean "missing" and are let through.
        fill: What a missing value is replaced by before the model sees it; needs ``nullable``.
        unit: Unit of measurement, as UCUM writes it (``Cel``, ``m/s``, ``1``).
        sensitivity: How far the values may travel.
    """

    minimum: float | None = None
    maximum: float | None = None
    allowed: tuple[float | str, ...] | None = None
    nullable: bool = False
    fill: float | str | None = None
    unit: str | None = None
    sensitivity: Sensitivity = Sensitivity.PUBLIC


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model input or output.

    Args:
        shape: Axis sizes; ``None`` is dynamic. Axis 0 is the batch. NCHW: ``(None, 3, 224, 224)``.
        labels: Names of the classes along the last axis, for a classifier's output.
    """

    name: str
    datatype: Datatype
    shape: tuple[int | None, ...]
    constraint: Constraint = Constraint()
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ManifestError("a tensor of the signature has no name")
        if not self.shape or any(axis is not None and axis < 1 for axis in self.shape):
            raise ManifestError(f"{self.name}: needs at least one axis, each >= 1 or dynamic, got {self.shape}")
        _check_constraint(self.name, self.datatype, self.constraint)
        if self.labels is not None and self.shape[-1] not in (None, len(self.labels)):
            raise ManifestError(f"{self.name}: {len(self.labels)} labels for a last axis of {self.shape[-1]}")


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """A model's inputs and outputs, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for side, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [spec.name for spec in specs]
            if not names or len(set(names)) != len(names):
                raise ManifestError(f"{side}: needs at least one tensor and no name twice, got {names}")

    def input(self, name: str) -> TensorSpec:
        """The input called ``name``.

        Raises:
            SignatureMismatch: There is none.
        """
        for spec in self.inputs:
            if spec.name == name:
                return spec
        known = ", ".join(spec.name for spec in self.inputs)
        raise SignatureMismatch(name, rule="name", detail=f"the model has no such input; it has: {known}")

    def check(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The inputs as the model may see them: in order, missing values filled.

        Args:
            inputs: By name; axis 0 is N, the same for all.
        Returns:
            The same arrays; copies of those with missing values to fill, of big-endian numbers, and of text that is
            not yet an object array of ``bytes``.
        Raises:
            SignatureMismatch: A name, datatype, shape or value breaks the signature; it names tensor, row and rule.
        """
        for name in inputs:
            self.input(name)
        checked: dict[str, NDArray[Any]] = {}
        rows: int | None = None
        for spec in self.inputs:
            array = inputs.get(spec.name)
            if array is None:
                raise SignatureMismatch(spec.name, rule="name", detail="the request lacks this input")
            array = _conform(spec, array)
            if rows is not None and len(array) != rows:
                raise SignatureMismatch(
                    spec.name, rule="shape", detail=f"{len(array)} rows, but '{self.inputs[0].name}' has {rows}"
                )
            rows = len(array)
            checked[spec.name] = _check_values(spec, array)
        return checked


def _check_constraint(name: str, datatype: Datatype, limits: Constraint) -> None:
    """Refuse a constraint that no value, or the wrong ones, would satisfy once it is cast to the datatype."""
    for bound in (limits.minimum, limits.maximum):
        if bound is not None and (datatype is Datatype.BYTES or not math.isfinite(bound)):
            raise ManifestError(f"{name}: {bound} bounds no {datatype.value}; give a finite number to a numeric tensor")
    if limits.minimum is not None and limits.maximum is not None and limits.minimum > limits.maximum:
        raise ManifestError(f"{name}: minimum {limits.minimum} is above maximum {limits.maximum}")
    if limits.allowed is not None and not limits.allowed:
        raise ManifestError(f"{name}: the list of allowed values is empty")
    for value in limits.allowed or ():
        if not _holds(datatype, value):
            raise ManifestError(f"{name}: allowed value {value!r} is no value of {datatype.value}")
    if limits.fill is not None and not limits.nullable:
        raise ManifestError(f"{name}: fill is given, but the tensor is not nullable")
    if limits.fill is not None and not _holds(datatype, limits.fill):
        raise ManifestError(f"{name}: fill {limits.fill!r} is no value of {datatype.value}")


def _holds(datatype: Datatype, value: float | str) -> bool:
    """Whether a tensor can hold ``value``, but for rounding of fractions."""
    if isinstance(value, str) or datatype is Datatype.BYTES:
        return isinstance(value, str) and datatype is Datatype.BYTES
    if not math.isfinite(value):
        return False
    kind = datatype.numpy.kind
    if kind == "b":
        return value in (0, 1)
    if kind == "f":
        return abs(value) <= float(np.finfo(datatype.numpy).max)
    # JSON numbers arrive as doubles, which tell integers apart up to 2 ** 53 only.
    limits = np.iinfo(datatype.numpy)
    return value == int(value) and abs(value) <= 2**53 and limits.min <= value <= limits.max


def _conform(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    """The array in the datatype's own dtype, if datatype and shape are those of the signature."""
    if array.dtype != spec.datatype.numpy:
        try:
            found = Datatype.of(array.dtype).value
        except MessageError:
            found = f"numpy {array.dtype}"
        if found != spec.datatype.value:
            raise SignatureMismatch(spec.name, rule="datatype", detail=f"expected {spec.datatype.value}, got {found}")
    fits = array.ndim == len(spec.shape) and all(
        want is None or want == have for want, have in zip(spec.shape, array.shape, strict=True)
    )
    if not fits or array.size == 0:
        want = ", ".join("-1" if axis is None else str(axis) for axis in spec.shape)
        have = ", ".join(str(axis) for axis in array.shape)
        why = " (no elements)" if fits else ""
        raise SignatureMismatch(spec.name, rule="shape", detail=f"expected [{want}], got [{have}]{why}")
    if spec.datatype is Datatype.BYTES:
        return _as_bytes(spec, array)
    return array.astype(spec.datatype.numpy, copy=False)  # a copy only of big-endian arrays


def _as_bytes(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    """Text of any kind as an object array of ``bytes``; the array itself where it is one already."""
    flat = array.ravel()
    if array.dtype.kind == "O" and all(isinstance(element, bytes) for element in flat):
        return array
    out = np.empty(array.size, dtype=object)
    index = 0
    try:
        for index, element in enumerate(flat):
            out[index] = as_bytes(element)
    except MessageError as error:
        at = np.unravel_index(index, array.shape)
        detail = f"element at [{', '.join(str(axis) for axis in at)}] {error}"
        raise SignatureMismatch(spec.name, rule="datatype", detail=detail, row=int(at[0])) from error
    return out.reshape(array.shape)


def _check_values(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    limits = spec.constraint
    missing = _missing(spec, array)
    if missing is not None and not limits.nullable:
        _refuse(spec, array, missing, "missing", "is not nullable, got a missing value (NaN or empty)")
    _check_range(spec, array, missing)
    _check_allowed(spec, array, missing)
    # Filled last: a fill may lie outside the range on purpose, so that the model can tell it from a measurement.
    if missing is None or limits.fill is None:
        return array
    fill = limits.fill.encode() if isinstance(limits.fill, str) else limits.fill
    filled: NDArray[Any] = array.copy()
    filled[missing] = np.array(fill, dtype=array.dtype)
    return filled


def _check_range(spec: TensorSpec, array: NDArray[Any], missing: NDArray[np.bool_] | None) -> None:
    """Compare the extremes first: two reductions settle the usual case without a mask per element."""
    low, high = spec.constraint.minimum, spec.constraint.maximum
    if low is None and high is None:
        return
    values = array if missing is None else array[~missing]
    if values.size == 0:
        return
    # item() gives Python's numbers, which compare exactly, whatever their types and sizes.
    if low is not None and values.min().item() < (bound := _rounded(spec.datatype, low)):
        below = array < (math.ceil(low) if array.dtype.kind in "iu" else np.float64(bound))
        _refuse(spec, array, below, "range", f"is below the minimum {_text(low)}")
    if high is not None and values.max().item() > (bound := _rounded(spec.datatype, high)):
        above = array > (math.floor(high) if array.dtype.kind in "iu" else np.float64(bound))
        _refuse(spec, array, above, "range", f"is above the maximum {_text(high)}")


def _rounded(datatype: Datatype, bound: float) -> float:
    """The bound as the datatype holds it: 0.1 in FP32 is within a maximum of 0.1, though a little above."""
    dtype = datatype.numpy
    if dtype.kind != "f" or abs(bound) > float(np.finfo(dtype).max):
        return bound
    return float(dtype.type(bound))


def _check_allowed(spec: TensorSpec, array: NDArray[Any], missing: NDArray[np.bool_] | None) -> None:
    allowed = spec.constraint.allowed
    if allowed is None:
        return
    if spec.datatype is Datatype.BYTES:
        known = {value.encode() for value in allowed if isinstance(value, str)}
        wrong = np.array([element not in known for element in array.ravel()], dtype=bool).reshape(array.shape)
    else:
        wrong = ~np.isin(array, np.array(allowed, dtype=array.dtype))
    if missing is not None:
        wrong &= ~missing
    if wrong.any():
        _refuse(spec, array, wrong, "enumeration", f"is not one of {list(allowed)}")


def _missing(spec: TensorSpec, array: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Mask of the missing elements, or None where there is none."""
    if array.dtype.kind == "f":
        # One reduction tells whether any NaN is there: a NaN survives min(), infinities do not become one.
        if not np.isnan(array.min()):
            return None
        nan: NDArray[np.bool_] = np.isnan(array)
        return nan
    allowed = spec.constraint.allowed
    # Empty text is a value like any other, unless it may be missing or is none of those allowed.
    if spec.datatype is Datatype.BYTES and (spec.constraint.nullable or (allowed is not None and "" not in allowed)):
        empty = np.array([not element for element in array.ravel()], dtype=bool).reshape(array.shape)
        return empty if empty.any() else None
    return None


def _refuse(spec: TensorSpec, array: NDArray[Any], mask: NDArray[np.bool_], rule: str, why: str) -> None:
    at = tuple(int(axis[0]) for axis in np.nonzero(mask))
    value = f"{array[at]!r:.60}" if spec.datatype is Datatype.BYTES else str(array[at])
    where = ", ".join(str(axis) for axis in at)
    raise SignatureMismatch(spec.name, rule=rule, detail=f"value {value} at [{where}] {why}", row=at[0])


def _text(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) and abs(bound) < 1e16 else str(bound)
