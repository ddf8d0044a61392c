"""Datatype and shape of one tensor of a request."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from edge_agent.contract.errors import MessageError, SignatureMismatch
from edge_agent.contract.signature import TensorSpec
from edge_agent.contract.tensors import Datatype


class FormCheck:
    """Says what is wrong with a tensor's form, and turns big-endian numbers round.

    Args:
        spec: What the tensor should be.
    """

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec
        self._limits = spec.constraint.axes

    @property
    def tail(self) -> tuple[int | None, ...] | None:
        """All axes after the first, where the first alone is dynamic and free; None where it takes a closer look.

        With it the usual case is one comparison of two short tuples.
        """
        first, *rest = self._spec.shape
        free = first is None and not self._limits and rest and None not in rest
        return tuple(rest) if free else None

    def conform(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array itself; numbers in the datatype's own dtype, a copy only of big-endian ones.

        Raises:
            SignatureMismatch: Datatype or shape are not those of the signature.
        """
        self._check_datatype(array)
        self._check_shape(array)
        if self._spec.datatype is Datatype.BYTES:
            return array
        return array.astype(self._spec.datatype.numpy, copy=False)

    def _check_datatype(self, array: NDArray[Any]) -> None:
        spec = self._spec
        if array.dtype == spec.datatype.numpy:
            return
        try:
            found = Datatype.of(array.dtype).value
        except MessageError:
            found = f"numpy {array.dtype}"
        if found != spec.datatype.value:
            raise SignatureMismatch(spec.name, rule="datatype", detail=f"expected {spec.datatype.value}, got {found}")

    def _check_shape(self, array: NDArray[Any]) -> None:
        spec = self._spec
        fits = array.ndim == len(spec.shape) and all(
            want is None or want == have for want, have in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.size == 0:
            want = ", ".join("-1" if axis is None else str(axis) for axis in spec.shape)
            have = ", ".join(str(axis) for axis in array.shape)
            why = " (no elements)" if fits else ""
            raise SignatureMismatch(spec.name, rule="shape", detail=f"expected [{want}], got [{have}]{why}")
        for limit in self._limits:
            length = array.shape[limit.axis]
            if length < limit.minimum or (limit.maximum is not None and length > limit.maximum):
                most = "" if limit.maximum is None else f" and at most {limit.maximum}"
                detail = f"axis {limit.axis} must be at least {limit.minimum}{most} long, got {length}"
                raise SignatureMismatch(spec.name, rule="shape", detail=detail)
