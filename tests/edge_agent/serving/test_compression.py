"""Compressed bodies: read as they were written, bounded, and refused with what is wrong."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferResult

from edge_agent.contract.errors import MalformedRequest
from edge_agent.serving.compression import (
    UnknownEncoding,
    UnpackedTooLarge,
    answer_encoding,
    pack,
    request_encoding,
    unpack,
)

PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
UNPACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}
each_encoding = pytest.mark.parametrize("encoding", ["gzip", "deflate"])


@each_encoding
@given(data=st.binary(max_size=2000), times=st.integers(1, 200))
def test_what_others_pack_is_unpacked(encoding: str, data: bytes, times: int) -> None:
    packed = PACK[encoding](data * times)
    assert unpack(memoryview(packed), encoding, limit_bytes=len(data) * times) == data * times
    if data:
        with pytest.raises(UnpackedTooLarge, match="the limit"):
            unpack(packed, encoding, limit_bytes=len(data) * times - 1)


@each_encoding
@given(parts=st.lists(st.binary(max_size=300), max_size=5))
def test_what_is_packed_others_unpack(encoding: str, parts: list[bytes]) -> None:
    assert UNPACK[encoding](b"".join(pack(parts, encoding))) == b"".join(parts)


@each_encoding
def test_tritonclient_reads_a_packed_answer(encoding: str) -> None:
    body = b"".join(pack([b'{"outputs":[{"name":"y","shape":[1],"datatype":"FP32","data":[1]}]}'], encoding))
    assert InferResult.from_response_body(body, content_encoding=encoding).as_numpy("y").tolist() == [1.0]


@each_encoding
@given(cut=st.integers(1, 60), junk=st.binary(min_size=1, max_size=5))
def test_truncated_and_trailing_bytes_are_refused(encoding: str, cut: int, junk: bytes) -> None:
    packed = PACK[encoding](b"some text" * 30)
    with pytest.raises(MalformedRequest, match="truncated"):
        unpack(packed[: -min(cut, len(packed))], encoding, limit_bytes=10_000)
    with pytest.raises(MalformedRequest, match=f"{len(junk)} bytes follow the end"):
        unpack(packed + junk, encoding, limit_bytes=10_000)
    with pytest.raises(MalformedRequest, match="one member"):
        unpack(packed + packed, encoding, limit_bytes=10_000)


@each_encoding
@given(data=st.binary(max_size=100))
def test_bytes_that_are_not_packed_are_refused(encoding: str, data: bytes) -> None:
    with pytest.raises(MalformedRequest):
        unpack(b"x" + data, encoding, limit_bytes=10_000)


def test_deflate_without_its_zlib_header_is_told_from_the_one_that_is_meant() -> None:
    machine = zlib.compressobj(wbits=-15)
    with pytest.raises(MalformedRequest, match=r"zlib form \(RFC 1950\)"):
        unpack(machine.compress(b"text") + machine.flush(), "deflate", limit_bytes=100)


@each_encoding
def test_a_bomb_is_refused_without_the_memory_it_would_take(encoding: str) -> None:
    bomb = PACK[encoding](bytes(200_000_000))
    tracemalloc.start()
    with pytest.raises(UnpackedTooLarge) as caught:
        unpack(bomb, encoding, limit_bytes=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.http_status == 413
    assert peak < 5_000_000


@pytest.mark.parametrize(
    ("value", "encoding"),
    [
        (None, None),
        (b"", None),
        (b"identity", None),
        (b"gzip", "gzip"),
        (b" GZIP ", "gzip"),
        (b"x-gzip", "gzip"),
        (b"deflate", "deflate"),
    ],
)
def test_known_content_encodings(value: bytes | None, encoding: str | None) -> None:
    assert request_encoding(value) == encoding


@pytest.mark.parametrize("value", [b"br", b"zstd", b"gzip, deflate", b"\xff"])
def test_other_content_encodings_are_refused_with_those_there_are(value: bytes) -> None:
    with pytest.raises(UnknownEncoding, match="gzip, deflate, identity") as caught:
        request_encoding(value)
    assert caught.value.http_status == 415
    assert caught.value.http_headers == ((b"accept-encoding", b"gzip, deflate"),)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        (None, None),
        (b"gzip", "gzip"),
        (b"deflate", "deflate"),
        (b"gzip, deflate, br", "gzip"),
        (b"deflate, gzip", "gzip"),
        (b"gzip;q=0.5, deflate", "deflate"),
        (b"GZIP;Q=1.0", "gzip"),
        (b"*", "gzip"),
        (b"gzip;q=0, *", "deflate"),
        (b"gzip;q=0", None),
        (b"br, identity", None),
        (b"identity, gzip;q=0.5", None),
        (b"gzip;q=nan", None),
        (b"gzip;q=x, deflate;q=0.1", "deflate"),
        (b";;,,=", None),
    ],
)
def test_the_answer_comes_as_the_application_likes_it_best(accepted: bytes | None, encoding: str | None) -> None:
    assert answer_encoding(accepted) == encoding
