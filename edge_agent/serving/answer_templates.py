"""What the binary answers of one model have in common is written once: in their JSON all but the id repeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from edge_agent.contract.manifest import Classification
from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype
from edge_agent.serving.codec import encode_response
from edge_agent.serving.request import InferenceAnswer, InferenceRequest, SharedRun
from edge_agent.serving.shared_memory import Regions

Buffer = bytes | bytearray | memoryview

# Per model.
_MOST: Final = 64
# A larger answer takes so long to write that nothing is gained.
_RAW_BYTES: Final = 16 * 1024
# Arrays of these hold the very bytes that the protocol wants.
_NUMBERS: Final = frozenset(datatype.numpy for datatype in Datatype if datatype is not Datatype.BYTES)


class _Template(NamedTuple):
    """The JSON of an answer up to its id and from there on, and the names of the outputs that follow it."""

    before: bytes
    after: bytes
    raw: Sequence[str]


class AnswerTemplates:
    """Writes the answers of one model, byte for byte as :func:`edge_agent.serving.codec.encode_response`. Any thread.

    Args:
        regions: Takes the outputs that are wanted there.
        task: Names the classes where the signature does not.
    """

    def __init__(
        self, signature: Signature, regions: Regions | None = None, *, task: Classification | None = None
    ) -> None:
        self._signature, self._regions, self._task = signature, regions, task
        self._templates: dict[object, _Template] = {}

    def __len__(self) -> int:
        return len(self._templates)

    def encode(self, request: InferenceRequest, answer: InferenceAnswer) -> tuple[list[Buffer], int | None]:
        """The body in pieces, and the length of its JSON where raw tensors follow it; errors as the codec's."""
        wanted, request_id = request.outputs, answer.request_id
        if answer.violations or (wanted is None and not request.binary):
            return self._write(request, answer)
        # What JSON escapes, and what takes other than one byte, goes the ordinary way.
        if not (request_id.isascii() and request_id.isprintable()) or '"' in request_id or "\\" in request_id:
            return self._write(request, answer)
        outputs = answer.outputs
        forms = [(name, array.dtype, array.shape) for name, array in outputs.items()]
        key = (wanted, answer.label_wanted, *forms)
        template = self._templates.get(key)
        if template is None:
            parts, length = self._write(request, answer)
            self._remember(key, request, answer, parts, length)
            return parts, length
        before, after, raw = template
        data = [outputs[name].tobytes() for name in raw]
        return [b"".join((before, request_id.encode(), after, *data))], len(before) + len(request_id) + len(after)

    def encode_shared(self, request: InferenceRequest, run: SharedRun) -> list[tuple[list[Buffer], int | None]]:
        """The answers to the requests of one run, each as :meth:`encode` writes it.

        Args:
            request: What they have in common.
        """
        outputs, ids = run.outputs, run.request_ids
        forms = [(name, array.dtype, (1, *array.shape[1:])) for name, array in outputs.items()]
        template = self._templates.get((request.outputs, False, *forms))
        if template is None:
            return [self.encode(request, run.answer(index)) for index in range(len(ids))]
        before, after, raw = template
        whole = [(data, len(data) // len(ids)) for data in (outputs[name].tobytes() for name in raw)]
        found: list[tuple[list[Buffer], int | None]] = []
        for index, request_id in enumerate(ids):
            if index in run.asked:
                found.append(self.encode(request, run.answer(index)))
                continue
            named = request_id.encode()
            data = [each[index * size : index * size + size] for each, size in whole]
            found.append(([b"".join((before, named, after, *data))], len(before) + len(named) + len(after)))
        return found

    def _write(self, request: InferenceRequest, answer: InferenceAnswer) -> tuple[list[Buffer], int | None]:
        return encode_response(request, answer, self._signature, self._regions, task=self._task)

    def _remember(
        self,
        key: object,
        request: InferenceRequest,
        answer: InferenceAnswer,
        parts: Sequence[Buffer],
        length: int | None,
    ) -> None:
        """Make a template of an answer, where the next one of this form will differ in id and numbers alone."""
        wanted = request.outputs
        if wanted is not None and not all(each.binary and not each.classes and each.region is None for each in wanted):
            return
        raw = [each.name for each in wanted] if wanted is not None else list(answer.outputs)
        arrays = [answer.outputs[name] for name in raw]
        if length is None or len(parts) > 1 or sum(array.nbytes for array in arrays) > _RAW_BYTES:
            return
        if not all(array.dtype in _NUMBERS for array in arrays):
            return
        head = bytes(parts[0][:length])
        named = msgspec.json.encode({"model_name": answer.model, "model_version": answer.version})
        before = len(named[:-1] + b',"id":"')
        if len(self._templates) >= _MOST:
            self._templates.clear()
        self._templates[key] = _Template(head[:before], head[before + len(answer.request_id) :], tuple(raw))
