"""Where the weights lie in an exported model's files, as ``tensors.json`` says it: deltas are made per tensor."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx

from edge_agent.contract.manifest import FULL_PRECISION, TENSORS_FILE
from edge_agent.contract.stored_tensors import (
    StoredFile,
    StoredTensor,
    StoredTensors,
    StoredType,
    decode_stored_tensors,
)
from edge_agent.runtime.package import Package

_TYPES: dict[int, StoredType] = {
    onnx.TensorProto.FLOAT: StoredType.FP32,
    onnx.TensorProto.FLOAT16: StoredType.FP16,
    onnx.TensorProto.BFLOAT16: StoredType.BF16,
    onnx.TensorProto.INT8: StoredType.INT8,
    onnx.TensorProto.UINT8: StoredType.UINT8,
    onnx.TensorProto.INT32: StoredType.INT32,
    onnx.TensorProto.INT64: StoredType.INT64,
}
# Fields of ONNX's messages (onnx.proto) on the way to the bytes of a tensor within the file.
_GRAPH, _INITIALIZER, _NAME, _RAW_DATA = 7, 5, 8, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Constants of a few numbers: their names would take more room than they do.
_LEAST_BYTES = 64


def stored_tensors(model: Path, *, prefix: str = "") -> StoredTensors:
    """The layout of an ONNX file's weights, those within it and those in files beside it.

    Args:
        model: The ONNX file.
        prefix: Folder of the model within the package, such as ``int8/``.
    Returns:
        By path within the package; files without any such weights are not named.
    """
    graph = onnx.load(str(model), load_external_data=False).graph
    kinds = {tensor.name: _TYPES[tensor.data_type] for tensor in graph.initializer if tensor.data_type in _TYPES}
    found: dict[str, list[StoredTensor]] = {}
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.name in kinds:
            place = {entry.key: entry.value for entry in tensor.external_data}
            kind, offset, length = kinds[tensor.name], int(place.get("offset", 0)), int(place["length"])
            found.setdefault(place["location"], []).append(_tensor(tensor.name, kind, offset, length))
    for name, offset, length in _embedded(model):
        if name in kinds and length >= _LEAST_BYTES:
            found.setdefault(model.name, []).append(_tensor(name, kinds[name], offset, length))
    return StoredTensors(
        files={prefix + name: StoredFile(tensors=_apart(tensors)) for name, tensors in sorted(found.items())}
    )


def joined(*layouts: StoredTensors) -> StoredTensors:
    """The layouts of several models of one package."""
    return StoredTensors(files={name: file for layout in layouts for name, file in layout.files.items()})


def layout_of(package: Package) -> StoredTensors:
    """What a package's ``tensors.json`` says; of one without, where the weights of its full precision lie."""
    if TENSORS_FILE in package.manifest.files:
        return decode_stored_tensors(package.path(TENSORS_FILE).read_bytes())
    return stored_tensors(package.path(package.manifest.variants[FULL_PRECISION].model))


def _tensor(name: str, kind: StoredType, offset: int, length: int) -> StoredTensor:
    return StoredTensor(name=name, dtype=kind, offset=offset, count=length // kind.size_bytes)


def _apart(tensors: list[StoredTensor]) -> tuple[StoredTensor, ...]:
    """By ascending offset; of tensors that share bytes, the first."""
    kept: list[StoredTensor] = []
    end = 0
    for tensor in sorted(tensors, key=lambda each: (each.offset, -each.count, each.name)):
        if tensor.offset >= end:
            kept.append(tensor)
            end = tensor.offset + tensor.count * tensor.dtype.size_bytes
    return tuple(kept)


def _embedded(model: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and length of each initialiser's raw data within the ONNX file itself."""
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for field, at, length in list(_fields(data, 0, len(data))):
            if field != _GRAPH:
                continue
            for inner, start, size in _fields(data, at, at + length):
                if inner != _INITIALIZER:
                    continue
                parts = {number: (begin, long) for number, begin, long in _fields(data, start, start + size)}
                if _RAW_DATA in parts and _NAME in parts:
                    begin, long = parts[_NAME]
                    yield data[begin : begin + long].decode(), *parts[_RAW_DATA]


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The length-delimited fields of a message: number, offset and length (protobuf's wire format)."""
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _BYTES:
            length, at = _varint(data, at)
            yield key >> 3, at, length
            at += length
        elif kind in {_FIXED64, _FIXED32}:
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}: no ONNX file")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
