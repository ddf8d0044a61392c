"""A plan: an ONNX model with its weights, the profiles, and who wrote it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import onnx

from tests.fakes.tensorrt_module.faults import version

_MAGIC = b"FAKEPLAN"

# By input: smallest, usual, largest shape.
Profile = dict[str, list[list[int]]]


@dataclasses.dataclass
class Plan:
    """What a build results in."""

    model: bytes
    profiles: list[Profile]
    refittable: bool
    narrow_int64: bool = False
    version: str = dataclasses.field(default_factory=version)

    def encode(self) -> bytes:
        """As bytes."""
        facts = {key: value for key, value in dataclasses.asdict(self).items() if key != "model"}
        header = json.dumps(facts).encode()
        body = len(header).to_bytes(4, "little") + header + self.model
        return _MAGIC + hashlib.sha256(body).digest() + body

    @classmethod
    def decode(cls, data: bytes) -> Plan:
        """From bytes.

        Raises:
            ValueError: They are none, or another version's.
        """
        body = data[40:]
        if data[:8] != _MAGIC or hashlib.sha256(body).digest() != data[8:40]:
            raise ValueError("magicTag mismatch: the stream is no engine, or damaged")
        end = 4 + int.from_bytes(body[:4], "little")
        facts: dict[str, Any] = json.loads(body[4:end])
        if facts["version"] != version():
            raise ValueError(f"engine plan of version {facts['version']}, this is {version()}: rebuild it")
        return cls(model=body[end:], **facts)


def whole_model(model: bytes, folder: str) -> onnx.ModelProto:
    """A model with its external weights, from ``folder``, inside."""
    proto = onnx.load_model_from_string(model)
    onnx.external_data_helper.load_external_data_for_model(proto, folder)
    return proto


def weights_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers by name."""
    return {weight.name: weight for weight in model.graph.initializer}


def structure_of(model: onnx.ModelProto) -> str:
    """A digest of everything but the weights' values."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for weight in bare.graph.initializer:
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "external_data"):
            weight.ClearField(field)
        weight.ClearField("data_location")
    bare.ClearField("producer_version")
    bare.ClearField("doc_string")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()
