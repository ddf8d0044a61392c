"""Requests of the inference protocol, made for tests: as JSON, in binary, of any datatype."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype, pack_bytes


def signature(datatype: Datatype = Datatype.FP32, shape: tuple[int | None, ...] = (None, 2)) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", datatype=datatype, shape=shape),),
        outputs=(TensorSpec(name="y", datatype=datatype, shape=shape),),
    )


def any_array(*, finite: bool) -> st.SearchStrategy[NDArray[Any]]:
    def of(datatype: Datatype) -> st.SearchStrategy[NDArray[Any]]:
        shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
        if datatype is Datatype.BYTES:
            elements = st.text(max_size=5).map(str.encode) if finite else st.binary(max_size=5)
            return shapes.flatmap(lambda shape: hnp.arrays(object, shape, elements=elements, fill=st.nothing()))
        if finite and datatype.numpy.kind == "f":
            width: Any = datatype.numpy.itemsize * 8
            elements_ = st.floats(width=width, allow_nan=False, allow_infinity=False)
            return shapes.flatmap(lambda shape: hnp.arrays(datatype.numpy, shape, elements=elements_))
        return shapes.flatmap(lambda shape: hnp.arrays(datatype.numpy, shape))

    return st.sampled_from(list(Datatype)).flatmap(of)


def binary_body(tensors: dict[str, NDArray[Any]], **fields: Any) -> tuple[bytes, int]:
    inputs, raw = [], b""
    for name, array in tensors.items():
        datatype = Datatype.of(array.dtype)
        data = pack_bytes(array) if datatype is Datatype.BYTES else array.tobytes()
        size = {"binary_data_size": len(data)}
        inputs.append({"name": name, "shape": array.shape, "datatype": datatype.value, "parameters": size})
        raw += data
    head = json.dumps({"inputs": inputs, **fields}).encode()
    return head + raw, len(head)


def json_body(array: NDArray[Any], *, nested: bool, **fields: Any) -> bytes:
    listed = array if array.dtype.kind != "O" else np.vectorize(bytes.decode, otypes=[object])(array)
    data = listed.tolist() if nested else listed.ravel().tolist()
    tensor = {"name": "x", "shape": array.shape, "datatype": Datatype.of(array.dtype).value, "data": data}
    return json.dumps({"inputs": [tensor], **fields}).encode()


def one_input(**changes: Any) -> bytes:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0], **changes}
    return json.dumps({"inputs": [{key: value for key, value in tensor.items() if value is not ...}]}).encode()
