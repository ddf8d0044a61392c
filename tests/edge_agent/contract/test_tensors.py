from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.contract.errors import MessageError
from edge_agent.contract.tensors import Datatype, Tensor, pack_bytes, unpack_bytes
from tests.edge_agent.contract.strategies import arrays, fast


@pytest.mark.parametrize("datatype", Datatype)
def test_every_array_of_every_datatype_comes_back_bit_for_bit(datatype: Datatype) -> None:
    @fast
    @given(arrays(datatype))
    def round_trip(array: NDArray[Any]) -> None:
        tensor = Tensor.of(array)
        back = tensor.array()
        assert tensor.datatype is datatype
        assert back.shape == array.shape
        assert back.dtype == datatype.numpy
        # Compared as bytes: NaN differs from itself, and big-endian numbers become little-endian ones.
        if datatype is Datatype.BYTES:
            assert back.tolist() == array.tolist()
        else:
            assert back.tobytes() == array.astype(datatype.numpy).tobytes()
        assert Tensor.of(back) == tensor

    round_trip()


@pytest.mark.parametrize("datatype", [datatype for datatype in Datatype if datatype is not Datatype.BYTES])
def test_datatype_names_numpy_dtype_and_size_belong_together(datatype: Datatype) -> None:
    assert Datatype.of(datatype.numpy) is datatype
    assert Datatype.of(datatype.numpy.newbyteorder(">")) is datatype
    assert datatype.size_bytes == datatype.numpy.itemsize


def test_text_of_any_kind_is_bytes() -> None:
    assert Datatype.BYTES.size_bytes is None
    expected = [b"a", "ö".encode(), b""]
    for array in (np.array(["a", "ö", ""]), np.array(["a", "ö", ""], dtype=object), np.array(expected)):
        tensor = Tensor.of(array)
        assert tensor.datatype is Datatype.BYTES
        assert tensor.array().tolist() == expected


def test_integers_of_the_machine_s_own_kinds_are_known() -> None:
    assert Datatype.of(np.dtype("longlong")) is Datatype.INT64
    assert Datatype.of(np.dtype("long")) in {Datatype.INT64, Datatype.INT32}


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "V4", "longdouble"])
def test_a_dtype_that_the_protocol_lacks_is_refused(dtype: str) -> None:
    with pytest.raises(MessageError, match="no Open Inference Protocol datatype"):
        Tensor.of(np.zeros(2, dtype=dtype))


@pytest.mark.parametrize(
    ("element", "says"),
    [
        (5, "element 1 is int, neither text nor bytes"),
        (None, "element 1 is NoneType"),
        ("\ud800", "element 1 is no Unicode text"),
    ],
)
def test_an_object_that_is_no_text_is_refused_rather_than_turned_into_zeros(element: object, says: str) -> None:
    array = np.array([b"fine", element], dtype=object)
    with pytest.raises(MessageError) as refused:
        Tensor.of(array)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("shape", "data", "says"),
    [
        ((2,), b"1234567", "needs 8 bytes, got 7"),
        ((2,), b"123456789", "needs 8 bytes, got 9"),
        ((-1,), b"1234", "an axis is negative"),
        ((-1, -4), b"1234" * 4, "an axis is negative"),
        ((2**32, 2**32), b"", "needs 73786976294838206464 bytes"),  # the product is 0 in 64 bits
        ((2**63,), b"", "needs"),
        ((0, 2**62, 2**62), b"", "axes"),
        ((1,) * 80, b"1234", "80 axes"),
    ],
)
def test_bytes_that_do_not_fill_the_shape_are_refused(shape: tuple[int, ...], data: bytes, says: str) -> None:
    with pytest.raises(MessageError) as refused:
        Tensor(datatype=Datatype.FP32, shape=shape, data=data).array()
    assert says in str(refused.value)


def test_a_bool_is_0_or_1_and_nothing_else() -> None:
    assert Tensor(datatype=Datatype.BOOL, shape=(2,), data=b"\x00\x01").array().tolist() == [False, True]
    with pytest.raises(MessageError, match="neither 0 nor 1"):
        Tensor(datatype=Datatype.BOOL, shape=(2,), data=b"\x00\x02").array()


@pytest.mark.parametrize(
    ("data", "count", "says"),
    [
        (b"", 1, "need at least 4 bytes"),
        (b"\x01\x00\x00\x00", 1, "element 0 reaches to byte 5, the tensor has 4"),
        (b"\xff\xff\xff\xff", 1, "reaches to byte"),
        (b"\x00\x00\x00\x00x", 1, "1 bytes are left over"),
        (b"\x00\x00\x00\x00", 2**60, "need at least"),
        (b"\x00\x00\x00\x00", -1, "need at least"),
        (b"\x01\x00\x00\x00a\x00\x00\x00", 2, "element 1 reaches"),
    ],
)
def test_bytes_elements_that_lie_about_their_length_are_refused(data: bytes, count: int, says: str) -> None:
    with pytest.raises(MessageError) as refused:
        unpack_bytes(data, count)
    assert says in str(refused.value)


@fast
@given(st.binary(max_size=40), st.integers(0, 8))
def test_any_bytes_unpack_to_what_packs_to_them_or_are_refused(data: bytes, count: int) -> None:
    try:
        elements = unpack_bytes(data, count)
    except MessageError:
        return
    assert pack_bytes(elements) == data


def test_a_tensor_s_array_cannot_be_written_to() -> None:
    assert not Tensor.of(np.zeros(3, dtype=np.float32)).array().flags.writeable
