"""The JSON of an inference request: typed, and bounded before much of it is made into objects. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from edge_agent.contract.errors import MalformedRequest, Unsupported
from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype
from edge_agent.serving.request import MAX_ID_LENGTH

Buffer = bytes | bytearray | memoryview
D = TypeVar("D")

# Beyond it nothing is decoded before its number and size are known.
LARGE_BYTES: Final = 64 * 1024
_SHAPE_BYTES: Final = 1024
# A letter that needs no escape, written with one.
_ESCAPED: Final = re.compile(rb"\\u00[2-7]")
# Inputs and outputs that a large request may have beyond the model's own: the first wrong one is still named.
_MARGIN: Final = 8

Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_ID_LENGTH)]


class InputParameters(msgspec.Struct, gc=False):
    """Where an input's data are, and in which unit; what else stands there is not for us."""

    binary_data_size: Size | None = None
    shared_memory_region: str | None = None
    shared_memory_offset: Size = 0
    shared_memory_byte_size: Size | None = None
    unit: str | None = None


class OutputParameters(msgspec.Struct, gc=False):
    """How an output is wanted."""

    binary_data: bool | None = None
    classification: Size = 0
    shared_memory_region: str | None = None
    shared_memory_offset: Size = 0
    shared_memory_byte_size: Size | None = None


class RequestParameters(msgspec.Struct, gc=False):
    """What concerns the whole request; parameters of an application's own are left unread."""

    binary_data_output: bool = False
    monitor: bool = True
    group: Text = ""
    priority: Size = 0
    timeout: Size = 0
    sequence_id: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False


def names_text_elsewhere(signature: Signature, body: Buffer) -> bool:
    """Whether a short body may name text in shared memory, of which there may be more than can be read in no time.

    Seen without reading the JSON: a name that is written with escapes counts as that one.
    """
    if all(spec.datatype is not Datatype.BYTES for spec in signature.inputs):
        return False
    written = bytes(body)
    return b"shared_memory" in written or _ESCAPED.search(written) is not None


def refuse_sequences(told: RequestParameters) -> None:
    """Refuse a request that is part of a sequence.

    Raises:
        Unsupported: It is.
    """
    if told.sequence_id or told.sequence_start or told.sequence_end:
        raise Unsupported(
            "parameters: sequence_id, sequence_start and sequence_end ask for stateful sequences, which are not "
            "offered here: send each row with all that the model needs"
        )


class Input(msgspec.Struct, Generic[D], gc=False):
    """One input; ``data`` is a list of its elements, or the JSON of them where that has yet to be looked at."""

    name: str
    shape: tuple[int, ...]
    datatype: Datatype
    parameters: InputParameters | None = None
    data: D | msgspec.UnsetType = msgspec.UNSET


class Output(msgspec.Struct, gc=False):
    """One wanted output."""

    name: str
    parameters: OutputParameters | None = None


class Head(msgspec.Struct, Generic[D], gc=False):
    """The JSON of a request."""

    inputs: list[Input[D]]
    id: Text = ""
    parameters: RequestParameters | None = None
    outputs: list[Output] | None = None


class _LargeInput(msgspec.Struct, gc=False):
    name: str
    shape: msgspec.Raw
    datatype: Datatype
    parameters: InputParameters | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_BAD_BYTE: Final = re.compile(r"\(byte (\d+)\)")
# As Python's json and numpy write them; the decoder stops within the first letters.
_NO_NUMBER: Final = re.compile(rb"(?i)[\s\[,:+-](nan|inf|infinity)\b")
_any_data = msgspec.json.Decoder(Head[msgspec.Raw])
# What nearly every request sends: flat lists of the model's kind of data, decoded in one pass with the rest.
_integers: Final = msgspec.json.Decoder(Head[list[int]])
_by_kind: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    "f": msgspec.json.Decoder(Head[list[float | None]]),
    "i": _integers,
    "u": _integers,
    "b": msgspec.json.Decoder(Head[list[bool]]),
    "O": msgspec.json.Decoder(Head[list[str]]),
}
_FLAT: Final[Mapping[Datatype, msgspec.json.Decoder[Any]]] = {
    datatype: _by_kind[datatype.numpy.kind] for datatype in Datatype
}
_shape_decoder = msgspec.json.Decoder(tuple[int, ...])


def read_head(data: Buffer, signature: Signature) -> Head[Any]:
    """The JSON of a request.

    Args:
        data: The JSON alone.
        signature: Of the model asked; says what kind of data to expect, and how many inputs and outputs.
    Returns:
        Its inputs' data are lists where all are flat and of the datatype's kind, else JSON to be looked at.
    Raises:
        MalformedRequest: It is no request of the protocol, or has far more inputs than the model.
    """
    try:
        if len(data) > LARGE_BYTES:
            return _read_large(data, signature)
        flat = _FLAT[signature.inputs[0].datatype]
        try:
            head: Head[Any] = flat.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):  # nested, or wrong: which input, shows when it is looked at
            return _any_data.decode(data)
        for tensor in head.inputs:
            if _FLAT[tensor.datatype] is not flat:
                return _any_data.decode(data)
        return head
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not data:
            raise MalformedRequest("the body is empty: a request is JSON, or JSON followed by tensors") from error
        raise MalformedRequest(f"the request's JSON: {error}{_hint(error, data)}") from error


def _read_large(data: Buffer, signature: Signature) -> Head[Any]:
    """As above; stops at the first input or output too many, which a list would only find at its end."""
    decoder = _bounded(len(signature.inputs) + _MARGIN, len(signature.outputs) + _MARGIN)
    head = decoder.decode(data)
    inputs = [tensor for tensor in msgspec.structs.astuple(head.inputs) if tensor is not msgspec.UNSET]
    outputs = head.outputs
    if outputs is not None:
        outputs = [output for output in msgspec.structs.astuple(outputs) if output is not msgspec.UNSET]
    return Head(
        inputs=[
            Input(tensor.name, _shape(tensor.name, tensor.shape), tensor.datatype, tensor.parameters, tensor.data)
            for tensor in inputs
        ],
        id=head.id,
        parameters=head.parameters,
        outputs=outputs,
    )


def _shape(name: str, shape: msgspec.Raw) -> tuple[int, ...]:
    size = len(memoryview(shape))
    if size > _SHAPE_BYTES:
        raise MalformedRequest(f"input '{name}': its shape takes {size} bytes, the limit is {_SHAPE_BYTES}")
    try:
        return _shape_decoder.decode(shape)
    except msgspec.DecodeError as error:
        raise MalformedRequest(f"input '{name}': shape: {error}") from error


@functools.lru_cache(maxsize=64)
def _bounded(inputs: int, outputs: int) -> msgspec.json.Decoder[Any]:
    """A decoder of requests with at most so many inputs and outputs."""

    def at_most(count: int, kind: type) -> Any:
        # A struct for an array: the decoder refuses the element after its last field at once.
        fields = [(f"at_{index}", kind | msgspec.UnsetType, msgspec.UNSET) for index in range(count)]
        return msgspec.defstruct("AtMost", fields, array_like=True, forbid_unknown_fields=True)

    fields: list[Any] = [
        ("inputs", at_most(inputs, _LargeInput)),
        ("id", Text, ""),
        ("parameters", RequestParameters | None, None),
        ("outputs", at_most(outputs, Output) | None, None),
    ]
    return msgspec.json.Decoder(msgspec.defstruct("BoundedHead", fields))


def _hint(error: Exception, data: Buffer) -> str:
    """What to send instead, where somebody is likely to have meant something."""
    text = str(error)
    place = _BAD_BYTE.search(text)
    if place is not None:
        around = bytes(data[max(0, int(place[1]) - 6) : int(place[1]) + 16])
        if _NO_NUMBER.search(around):
            return "; JSON has no NaN and no infinities: send null for NaN, or the tensor in binary"
        if text.startswith("JSON is malformed: trailing") and b"binary_data_size" in bytes(data[: int(place[1])]):
            return "; bytes after the JSON need the header Inference-Header-Content-Length, which says where it ends"
        return ""
    if "enum value" not in text:
        return ""
    if "'BF16'" in text:
        return "; BF16 is not served here: send FP32 where the model takes it"
    return f"; datatypes are {', '.join(datatype.value for datatype in Datatype)}"
