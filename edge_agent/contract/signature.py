"""What a model takes and gives: names, datatypes, shapes and constraints, and the check of a request against them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import ManifestError, SignatureMismatch
from edge_agent.contract.tensors import Datatype


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
        if not self.shape or any(axis is not None and axis < 1 for axis in self.shape):
            raise ManifestError(f"{self.name}: needs at least one axis, each >= 1 or dynamic, got {self.shape}")
        limits = self.constraint
        if limits.minimum is not None and limits.maximum is not None and limits.minimum > limits.maximum:
            raise ManifestError(f"{self.name}: minimum {limits.minimum} is above maximum {limits.maximum}")
        if limits.fill is not None and not limits.nullable:
            raise ManifestError(f"{self.name}: fill is given, but the tensor is not nullable")
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
            The same arrays, or filled copies of those with missing values.
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
            _check_form(spec, array)
            if rows is not None and len(array) != rows:
                raise SignatureMismatch(
                    spec.name, rule="shape", detail=f"{len(array)} rows, but '{self.inputs[0].name}' has {rows}"
                )
            rows = len(array)
            checked[spec.name] = _check_values(spec, array)
        return checked


def _check_form(spec: TensorSpec, array: NDArray[Any]) -> None:
    datatype = Datatype.of(array.dtype)
    if datatype is not spec.datatype:
        raise SignatureMismatch(
            spec.name, rule="datatype", detail=f"expected {spec.datatype.value}, got {datatype.value}"
        )
    fits = array.ndim == len(spec.shape) and all(
        want is None or want == have for want, have in zip(spec.shape, array.shape, strict=True)
    )
    if not fits or array.size == 0:
        want = ", ".join("-1" if axis is None else str(axis) for axis in spec.shape)
        have = ", ".join(str(axis) for axis in array.shape)
        raise SignatureMismatch(spec.name, rule="shape", detail=f"expected [{want}], got [{have}]")


def _check_values(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    limits = spec.constraint
    missing = _missing(spec, array)
    if missing is not None:
        if not limits.nullable:
            _refuse(spec, array, missing, "missing", "is not nullable, got a missing value (NaN or empty)")
        if limits.fill is not None:
            array = array.copy()
            array[missing] = limits.fill.encode() if isinstance(limits.fill, str) else limits.fill
            missing = None
    _check_range(spec, array, missing)
    if limits.allowed is not None:
        allowed = [a.encode() if isinstance(a, str) else a for a in limits.allowed]
        wrong = ~np.isin(array, np.array(allowed, dtype=array.dtype))
        if missing is not None:
            wrong &= ~missing
        if wrong.any():
            _refuse(spec, array, wrong, "enumeration", f"is not one of {list(limits.allowed)}")
    return array


def _check_range(spec: TensorSpec, array: NDArray[Any], missing: NDArray[Any] | None) -> None:
    """Compare the extremes first: two reductions settle the usual case without a mask per element."""
    low, high = spec.constraint.minimum, spec.constraint.maximum
    if spec.datatype is Datatype.BYTES or (low is None and high is None):
        return
    values = array if missing is None else array[~missing]
    if values.size == 0:
        return
    if low is not None and values.min() < low:
        _refuse(spec, array, array < low, "range", f"is below the minimum {low:g}")
    if high is not None and values.max() > high:
        _refuse(spec, array, array > high, "range", f"is above the maximum {high:g}")


def _missing(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any] | None:
    """Mask of the missing elements, or None where there is none."""
    if array.dtype.kind == "f":
        # One reduction tells whether any NaN is there: a NaN survives min(), infinities do not become one.
        if not np.isnan(array.min()):
            return None
        nan: NDArray[np.bool_] = np.isnan(array)
        return nan
    if spec.datatype is Datatype.BYTES:
        mask = np.array([len(element) == 0 for element in array.ravel()], dtype=bool).reshape(array.shape)
        return mask if mask.any() and (spec.constraint.nullable or spec.constraint.allowed is not None) else None
    return None


def _refuse(spec: TensorSpec, array: NDArray[Any], mask: NDArray[Any], rule: str, why: str) -> None:
    at = tuple(int(axis[0]) for axis in np.nonzero(mask))
    value = array[at]
    where = ", ".join(str(axis) for axis in at)
    raise SignatureMismatch(spec.name, rule=rule, detail=f"value {value!s} at [{where}] {why}", row=at[0])
