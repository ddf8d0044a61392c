"""What the answers of one model in frames have in common is written once: all but the numbers and two identifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from edge_agent.contract.frames import Buffer
from edge_agent.contract.tensors import Datatype
from edge_agent.serving.frames.tensors import answer_parts
from edge_agent.serving.request import InferenceAnswer, InferenceRequest, SharedRun
from edge_agent.serving.shared_memory import Regions

# Per model.
_MOST: Final = 64
# A larger answer goes in parts that are not copied.
_JOINED_BYTES: Final = 16 * 1024
# Arrays of these hold the very bytes that a frame wants.
_NUMBERS: Final = frozenset(datatype.numpy for datatype in Datatype if datatype is not Datatype.BYTES)
_ALL: Final = InferenceRequest("", {}, binary=True)
_encode = msgspec.msgpack.Encoder().encode


class _Template(NamedTuple):
    """The bytes before the frame's id, between it and the request's, and around the values of each output."""

    before: bytes
    between: bytes
    after: Sequence[bytes]


class FrameTemplates:
    """Writes the answers of one model, byte for byte as :func:`answer_parts`. Any thread.

    Args:
        regions: Takes the outputs that are wanted there.
    """

    def __init__(self, regions: Regions) -> None:
        self._regions = regions
        self._templates: dict[object, _Template | None] = {}

    def encode(self, number: int, request: InferenceRequest, answer: InferenceAnswer) -> list[Buffer]:
        """The frame in parts.

        Args:
            number: The ``id`` that the client chose for the frame.
        Raises:
            MalformedRequest, UnknownRegion, StorageFull: An output does not fit its shared memory.
        """
        outputs = answer.outputs
        if request.outputs is not None or answer.violations:
            return answer_parts(number, request, answer, regions=self._regions)
        named, numbered = _encode(answer.request_id), _encode(number)
        # The values begin at a multiple of 8 bytes: how many lie before them follows from these.
        key = (
            len(named),
            len(numbered),
            answer.label_wanted,
            *[(array.dtype, array.shape) for array in outputs.values()],
        )
        template = self._templates.get(key, self)
        if template is self:
            return self._remember(key, number, request, answer)
        if not isinstance(template, _Template):
            return answer_parts(number, request, answer, regions=self._regions)
        before, between, after = template
        pieces = [before, numbered, between, named]
        for bytes_before, array in zip(after, outputs.values(), strict=True):
            pieces += (bytes_before, array.tobytes())
        return [b"".join(pieces)]

    def encode_shared(self, numbers: Sequence[int], run: SharedRun) -> list[list[Buffer]]:
        """The frames of the answers to the requests of one run, which want all outputs, as :meth:`encode` writes them.

        Args:
            numbers: The ``id`` of each request's frame.
        """
        forms = [(array.dtype, (1, *array.shape[1:])) for array in run.outputs.values()]
        whole = [(data, len(data) // len(numbers)) for data in (array.tobytes() for array in run.outputs.values())]
        found: list[list[Buffer]] = []
        for index, (number, request_id) in enumerate(zip(numbers, run.request_ids, strict=True)):
            named, numbered = _encode(request_id), _encode(number)
            template = self._templates.get((len(named), len(numbered), False, *forms))
            if index in run.asked or not isinstance(template, _Template):
                found.append(self.encode(number, _ALL, run.answer(index)))
                continue
            before, between, after = template
            pieces = [before, numbered, between, named]
            for bytes_before, (data, size) in zip(after, whole, strict=True):
                pieces += (bytes_before, data[index * size : index * size + size])
            found.append([b"".join(pieces)])
        return found

    def _remember(self, key: object, number: int, request: InferenceRequest, answer: InferenceAnswer) -> list[Buffer]:
        parts = answer_parts(number, request, answer, regions=self._regions)
        if len(self._templates) >= _MOST:
            self._templates.clear()
        self._templates[key] = _template(parts, number, answer, self._regions)
        return parts


def _template(parts: Sequence[Buffer], number: int, answer: InferenceAnswer, regions: Regions) -> _Template | None:
    """Of answers like this one; None where they have none.

    Two frames that differ in every byte of what will differ, and in nothing else, show where that stands.
    """
    arrays = answer.outputs
    sizes = [array.nbytes for array in arrays.values()]
    text_bytes = len(answer.request_id.encode())
    if len(parts) > 1 or not text_bytes or not 0 < sum(sizes) < _JOINED_BYTES:
        return None
    if 0 in sizes or not all(array.dtype in _NUMBERS for array in arrays.values()):
        return None
    probes = []
    for byte in (b"\0", b"\1"):
        outputs = {
            name: np.frombuffer(byte * array.nbytes, array.dtype).reshape(array.shape) for name, array in arrays.items()
        }
        like = answer._replace(request_id=byte.decode() * text_bytes, outputs=outputs)
        of_number = number ^ byte[0]
        probes.append(bytes(answer_parts(of_number, _ALL, like, regions=regions)[0]))
    one, other = (np.frombuffer(probe, np.uint8) for probe in probes)
    if len(one) != len(other) or len(one) != len(parts[0]):
        return None
    differing = np.flatnonzero(one != other)
    if len(differing) != 1 + text_bytes + sum(sizes):
        return None
    frame = probes[0]
    numbered = int(differing[0]) + 1  # the last byte of the number
    first = int(differing[1])  # of the text, whose length stands before it
    at = first + text_bytes
    begin = first - (len(_encode(answer.request_id)) - text_bytes)
    after: list[bytes] = []
    for start, size in zip(differing[np.cumsum([1 + text_bytes, *sizes[:-1]])].tolist(), sizes, strict=True):
        after.append(frame[at:start])
        at = start + size
    return _Template(frame[: numbered - len(_encode(number))], frame[numbered:begin], after)
