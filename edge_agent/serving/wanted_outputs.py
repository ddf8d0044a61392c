"""The outputs that a request wants, and in which form: refused before the model runs where they cannot be given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from edge_agent.contract.errors import MalformedRequest
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.serving.binary_tensors import Buffer
from edge_agent.serving.json_request import Output, OutputParameters
from edge_agent.serving.request import WantedOutput
from edge_agent.serving.shared_memory import Regions


def read_outputs(
    described: Sequence[Output],
    signature: Signature,
    regions: Regions | None,
    inputs: Mapping[str, NDArray[Any]],
    *,
    binary: bool,
) -> tuple[WantedOutput, ...]:
    """The wanted outputs, in the request's order.

    Args:
        described: As the request has them.
        regions: Shared memory that it may name; None for none.
        inputs: They say how many rows the outputs will have.
        binary: Whether they are wanted in binary where nothing else is said.
    Raises:
        MalformedRequest: One is wanted twice, is not there, cannot be classified, or surely does not fit where it is
            wanted.
        UnknownRegion: Its shared memory is not registered.
    """
    wanted: dict[str, WantedOutput] = {}
    specs = {spec.name: spec for spec in signature.outputs}
    rows = max((len(array) for array in inputs.values()), default=0)
    for output in described:
        name, told = output.name, output.parameters
        if name in wanted:
            raise MalformedRequest(f"output '{name}': the request wants it twice")
        spec = specs.get(name)
        if spec is None:
            raise MalformedRequest(f"output '{name}': the model has no such output; it has: {', '.join(specs)}")
        if told is None:
            wanted[name] = WantedOutput(name, binary)
            continue
        if told.classification:
            _check_classes(spec, told)
        if told.shared_memory_region is not None:
            wanted[name] = _shared(spec, told, regions, rows)
        else:
            in_binary = binary if told.binary_data is None else told.binary_data
            wanted[name] = WantedOutput(name, in_binary, told.classification)
    return tuple(wanted.values())


def share(output: WantedOutput, data: Buffer, regions: Regions | None) -> None:
    """Put the bytes of an output where the request wants them.

    Raises:
        MalformedRequest: They do not fit there.
        UnknownRegion: Its shared memory is not registered any more.
        StorageFull: No memory is left for it.
    """
    if regions is None or output.region is None:
        raise MalformedRequest(f"output '{output.name}': shared memory cannot be used here")
    if len(data) > output.size:
        raise _too_small(output.name, len(data), output.size)
    regions.write(output.region, output.offset, [data])


def _too_small(name: str, needed: int, size: int) -> MalformedRequest:
    return MalformedRequest(f"output '{name}': takes {needed} bytes, the request gives it {size} in shared memory")


def _check_classes(spec: TensorSpec, told: OutputParameters) -> None:
    if spec.datatype in {Datatype.BYTES, Datatype.BOOL}:
        raise MalformedRequest(
            f"output '{spec.name}': classification needs numbers, this output is {spec.datatype.value}"
        )
    if told.shared_memory_region is not None:
        raise MalformedRequest(f"output '{spec.name}': classification cannot go into shared memory")


def _shared(spec: TensorSpec, told: OutputParameters, regions: Regions | None, rows: int) -> WantedOutput:
    name, region, size = spec.name, told.shared_memory_region, told.shared_memory_byte_size
    if told.binary_data:
        raise MalformedRequest(f"output '{name}': has both binary_data and shared_memory_region")
    if region is None or size is None:
        raise MalformedRequest(f"output '{name}': shared_memory_region needs a shared_memory_byte_size")
    if regions is None:
        raise MalformedRequest(f"output '{name}': shared memory cannot be used here")
    needed = _needed_bytes(spec, rows)
    if needed is not None and needed > size:
        raise _too_small(name, needed, size)
    regions.check(region, told.shared_memory_offset, size)
    return WantedOutput(name, region=region, offset=told.shared_memory_offset, size=size)


def _needed_bytes(spec: TensorSpec, rows: int) -> int | None:
    """Bytes that the output will take; None where only the run will tell."""
    element, rest = spec.datatype.size_bytes, spec.shape[1:]
    if element is None or None in rest:
        return None
    axis = spec.shape[0]
    return element * (rows if axis is None else axis) * math.prod(size for size in rest if size is not None)
