"""Format and size of an encoded image, off its header alone: what a decoder would be made to allocate. Pure.

Takes at most a few hundred small steps into the bytes, whatever they are; they may be hostile.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from edge_agent.contract.constraint import ImageFormat, ImageLimits

# A JPEG or GIF has some ten segments before its size, a few hundred blocks where there is a long comment; thousands are
# an attack on who walks them.
_MOST_STEPS = 512
# Start-of-frame markers (ITU T.81, table B.1), without DHT, JPG and DAC, which lie between them.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers that stand alone, without a length: TEM, RST0 to RST7.
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})


class ImageHeader(NamedTuple):
    """What a header says; sizes in pixels, each at least 1."""

    format: ImageFormat
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.format.value} {self.width}x{self.height}"


def read_image_header(data: bytes) -> ImageHeader | None:
    """The header of an encoded image; None where the bytes begin no image of a known format."""
    form = _format(data)
    if form is None:
        return None
    try:
        width, height = _SIZES[form](data)
    except (struct.error, IndexError, ValueError):  # the header ends early, or is none
        return None
    return ImageHeader(form, width, height) if width > 0 and height > 0 else None


def image_fault(data: bytes, limits: ImageLimits) -> str:
    """What is wrong with an encoded image, going on after its format and size; empty where nothing is."""
    known = ", ".join(each.value for each in limits.formats)
    header = read_image_header(data)
    if header is None:
        return f"does not begin an image; the model takes {known}"
    if header.format not in limits.formats:
        return f"is of a format that the model does not take; it takes {known}"
    for side, size, low, high in (
        ("width", header.width, limits.min_width, limits.max_width),
        ("height", header.height, limits.min_height, limits.max_height),
        ("number of pixels", header.width * header.height, None, limits.max_pixels),
    ):
        if low is not None and size < low:
            return f"has a {side} of {size}, below the minimum {low}"
        if high is not None and size > high:
            return f"has a {side} of {size}, above the maximum {high}"
    return ""


def _format(data: bytes) -> ImageFormat | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return ImageFormat.PNG
    if data.startswith(b"\xff\xd8\xff"):
        return ImageFormat.JPEG
    if data.startswith((b"GIF87a", b"GIF89a")):
        return ImageFormat.GIF
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return ImageFormat.WEBP
    return ImageFormat.BMP if data.startswith(b"BM") else None


def _png(data: bytes) -> tuple[int, int]:
    """IHDR is the first chunk (PNG, 5.6)."""
    length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
    if kind != b"IHDR" or length != 13 or max(width, height) > 2**31 - 1:
        raise ValueError("no IHDR")
    return width, height


def _jpeg(data: bytes) -> tuple[int, int]:
    at = 2
    for _ in range(_MOST_STEPS):
        if data[at] != 0xFF:
            raise ValueError("no marker")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte (ITU T.81, B.1.1.2)
            at += 1
        elif marker in _JPEG_ALONE:
            at += 2
        elif marker in _JPEG_FRAMES:
            _, _, height, width = struct.unpack_from(">HBHH", data, at + 2)
            return width, height
        elif marker in {0xD9, 0xDA}:  # the image ends, or its data begin, and no size was said
            raise ValueError("no frame")
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            at += 2 + max(length, 2)
    raise ValueError("no frame")


def _gif(data: bytes) -> tuple[int, int]:
    """The logical screen, or the first frame where it reaches beyond: decoders make room for both."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _gif_colours(flags)
    in_extension = False
    for _ in range(_MOST_STEPS):
        if in_extension:  # a chain of blocks, which an empty one ends
            size = data[at]
            in_extension = size > 0
            at += 1 + size
        elif data[at] == 0x21:
            in_extension = True
            at += 2
        elif data[at] == 0x2C:  # image descriptor
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
            return max(width, left + frame_width), max(height, top + frame_height)
        else:
            break
    raise ValueError("no frame")


def _gif_colours(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _bmp(data: bytes) -> tuple[int, int]:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:  # BITMAPCOREHEADER
        width, height = struct.unpack_from("<HH", data, 18)
        return width, height
    if header < 40:
        raise ValueError("no BITMAPINFOHEADER")
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # a negative height says that the rows go downwards


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":  # the canvas; a decoder refuses a frame of another size
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(_whole(data, 27, 3), "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        if data[20] != 0x2F:
            raise ValueError("no VP8L signature")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    if kind != b"VP8 " or data[23:26] != b"\x9d\x01\x2a":
        raise ValueError("no VP8 frame")
    return width & 0x3FFF, height & 0x3FFF


def _whole(data: bytes, at: int, size: int) -> bytes:
    part = data[at : at + size]
    if len(part) < size:
        raise ValueError("cut off")
    return part


_SIZES = {
    ImageFormat.PNG: _png,
    ImageFormat.JPEG: _jpeg,
    ImageFormat.GIF: _gif,
    ImageFormat.BMP: _bmp,
    ImageFormat.WEBP: _webp,
}
