from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.constraint import ImageFormat
from edge_agent.contract.image_header import ImageHeader, read_image_header
from tests.edge_agent.contract.images import IMAGES
from tests.edge_agent.contract.strategies import fast


@pytest.mark.parametrize("name", IMAGES)
def test_format_and_size_of_real_images_are_read_off_their_headers(name: str) -> None:
    form = next(form for form in ImageFormat if form.value in name)
    assert read_image_header(IMAGES[name]) == ImageHeader(form, 37, 21)


@pytest.mark.parametrize("name", IMAGES)
def test_a_header_that_is_cut_off_is_no_image(name: str) -> None:
    data = IMAGES[name]
    read = [read_image_header(data[:length]) for length in range(len(data))]
    first = next((at for at, header in enumerate(read) if header is not None), len(data))
    assert first >= 24  # no size is made up from what is not there
    assert set(read[first:]) <= {ImageHeader(read_image_header(data).format, 37, 21)}  # type: ignore[union-attr]


def test_what_is_no_image_has_no_header() -> None:
    for data in (b"", b"BM", b"GIF89a", b"\xff\xd8\xff", b"RIFF____WEBP", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7", b"<svg/>"):
        assert read_image_header(data) is None


def test_an_image_without_pixels_is_none() -> None:
    png = IMAGES["png"]
    assert read_image_header(png[:16] + struct.pack(">II", 0, 21) + png[24:]) is None
    assert read_image_header(png[:16] + struct.pack(">II", 2**31, 21) + png[24:]) is None


def test_a_bitmap_whose_rows_go_downwards_and_one_of_the_oldest_kind_are_read() -> None:
    info = b"BM" + bytes(12) + struct.pack("<Iii", 40, 37, -21) + bytes(28)
    core = b"BM" + bytes(12) + struct.pack("<IHH", 12, 37, 21)
    assert read_image_header(info) == read_image_header(core) == ImageHeader(ImageFormat.BMP, 37, 21)


def test_a_frame_that_reaches_beyond_a_gif_s_screen_counts() -> None:
    extension = b"\x21\xfe\x03abc\x00"
    frame = b"\x2c" + struct.pack("<HHHH", 10, 0, 60_000, 50_000)
    gif = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + extension + frame
    assert read_image_header(gif) == ImageHeader(ImageFormat.GIF, 60_010, 50_000)


def test_headers_without_end_are_given_up() -> None:
    assert read_image_header(b"\xff\xd8" + b"\xff" * 1_000_000) is None
    assert read_image_header(b"\xff\xd8" + b"\xff\xe0\x00\x02" * 1_000_000) is None
    endless = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    assert read_image_header(endless + b"\x21\xfe" + b"\x01a" * 1_000_000) is None
    assert read_image_header(endless + b"\x21\xfe\x00" * 1_000_000) is None
    many = (b"\x21\xfe" + b"\x01a" * 400 + b"\x00") * 30  # no chain of blocks is long, all of them together are
    assert read_image_header(endless + many + b"\x2c" + struct.pack("<HHHH", 0, 0, 1, 1)) is None


@fast
@given(st.sampled_from(sorted(IMAGES)), st.data())
def test_no_bytes_make_the_reader_fail(name: str, data: st.DataObject) -> None:
    broken = bytearray(IMAGES[name])
    for _ in range(data.draw(st.integers(0, 4))):
        broken[data.draw(st.integers(0, min(len(broken), 64) - 1))] = data.draw(st.integers(0, 255))
    header = read_image_header(bytes(broken[: data.draw(st.integers(0, len(broken)))]))
    assert header is None or (header.width > 0 and header.height > 0)
