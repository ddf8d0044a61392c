"""The shapes that an engine is built for, from the signature, the batching settings and the golden samples.

TensorRT chooses its kernels for the optimum of a profile and allocates for its maximum, so both are decided here: the
first profile takes every number of rows up to the largest batch; where batches are asked for, a second one is for the
single row alone, which most requests are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from edge_agent.contract.constraint import AxisLimit
from edge_agent.contract.errors import EngineBuildFailed
from edge_agent.contract.manifest import Batching
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype

# Of a model that does not batch: requests of more rows are run in several parts.
_ROWS_UNBATCHED = 16


@dataclasses.dataclass(frozen=True, slots=True)
class ShapeProfile:
    """One input's shapes: the smallest, the one to be fastest at, the largest."""

    name: str
    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


# Of each input one; an engine has one or several.
Profile = tuple[ShapeProfile, ...]


def profiles_for(
    signature: Signature, batching: Batching | None, golden: Mapping[str, tuple[int, ...]]
) -> tuple[Profile, ...]:
    """The profiles of an engine, the one that takes every request first.

    Args:
        golden: Shapes of the golden inputs, by name: the optimum of axes other than the batch.
    Raises:
        EngineBuildFailed: TensorRT cannot take the model: an input of text, or a dynamic axis whose largest size
            nobody says; final.
    """
    maximum = batching.max_rows if batching is not None else _ROWS_UNBATCHED
    optimum = 1
    if batching is not None:
        optimum = batching.preferred_rows[-1] if batching.preferred_rows else maximum
    rows = [(1, optimum, maximum)]
    if optimum > 1 and any(spec.shape[0] is None for spec in signature.inputs):
        rows.append((1, 1, 1))
    return tuple(tuple(_shapes(spec, each, golden.get(spec.name)) for spec in signature.inputs) for each in rows)


def _shapes(spec: TensorSpec, rows: tuple[int, int, int], golden: tuple[int, ...] | None) -> ShapeProfile:
    if spec.datatype is Datatype.BYTES:
        raise EngineBuildFailed(f"input '{spec.name}' is text, which TensorRT does not take", is_final=True)
    limits = {limit.axis: limit for limit in spec.constraint.axes}
    axes = [
        _axis(spec, number, rows if number == 0 else None, limits.get(number), golden)
        for number in range(len(spec.shape))
    ]
    minimum, optimum, maximum = zip(*axes, strict=True)
    return ShapeProfile(spec.name, minimum, optimum, maximum)


def _axis(
    spec: TensorSpec,
    number: int,
    rows: tuple[int, int, int] | None,
    limit: AxisLimit | None,
    golden: tuple[int, ...] | None,
) -> tuple[int, int, int]:
    size = spec.shape[number]
    if size is not None:
        return size, size, size
    smallest, largest = (limit.minimum, limit.maximum) if limit is not None else (1, None)
    if rows is not None:  # what the signature refuses anyway need not be built for
        minimum = max(rows[0], smallest)
        maximum = max(minimum, min(rows[2], largest or rows[2]))
        return minimum, min(max(rows[1], minimum), maximum), maximum
    if largest is None:
        raise EngineBuildFailed(
            f"input '{spec.name}': axis {number} is dynamic and the signature sets it no maximum; TensorRT allocates "
            f"for the largest: give the tensor's constraint `axes` with a maximum for axis {number}",
            is_final=True,
        )
    usual = golden[number] if golden is not None and len(golden) > number else largest
    return smallest, min(max(usual, smallest), largest), largest
