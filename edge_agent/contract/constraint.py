"""What the values of a tensor must satisfy, and what becomes of those that do not: the words of the input contract.

Only the words stand here. Whether they make sense together says ``constraint_sense``; ``checking`` holds a request
against them.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Length = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Sign = Annotated[str, msgspec.Meta(min_length=1, max_length=1)]


class Sensitivity(str, enum.Enum):
    """How far a tensor's values may travel."""

    PUBLIC = "public"
    MASKED = "masked"
    DEVICE_ONLY = "device-only"


class Rule(str, enum.Enum):
    """A rule that a value can break and still be let through, where a policy says so."""

    MISSING = "missing"
    ENCODING = "encoding"
    NUMBER = "number"
    DATE = "date"
    LENGTH = "length"
    RANGE = "range"
    ENUMERATION = "enumeration"
    IMAGE = "image"
    UNIT = "unit"


class Policy(str, enum.Enum):
    """What becomes of a value that breaks a rule.

    ``reject`` refuses the whole request; ``clip`` puts the nearest right value in its place; ``fill`` puts the
    constraint's ``fill`` there; ``flag`` lets it through as it is. All but the first are counted, and told to the
    application.
    """

    REJECT = "reject"
    CLIP = "clip"
    FILL = "fill"
    FLAG = "flag"


class Encoding(str, enum.Enum):
    """How an application writes text as bytes; the values are Python's names for the codecs."""

    UTF_8 = "utf-8"
    ASCII = "ascii"
    LATIN_1 = "latin-1"
    LATIN_9 = "iso-8859-15"
    WINDOWS_1252 = "windows-1252"
    UTF_16_LE = "utf-16-le"
    UTF_16_BE = "utf-16-be"
    SHIFT_JIS = "shift_jis"
    EUC_KR = "euc-kr"
    BIG5 = "big5"
    GB18030 = "gb18030"


class ImageFormat(str, enum.Enum):
    """A format of encoded images whose header this code reads."""

    PNG = "png"
    JPEG = "jpeg"
    GIF = "gif"
    BMP = "bmp"
    WEBP = "webp"


class NumberFormat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an application writes numbers as text; the model sees them with a ``.`` and without grouping.

    Args:
        decimal: Sign between the whole and the fraction.
        grouping: Sign between groups of three digits, which may also be left out; None allows none.
    """

    decimal: Sign = "."
    grouping: Sign | None = None


class DateFormat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an application writes points in time as text; the model sees RFC 3339 in UTC: ``2026-03-29T01:30:00Z``.

    Args:
        format: ``iso8601`` (RFC 3339, or less: without seconds, time or offset), or a pattern as ``strptime`` has it.
        zone: IANA time zone of texts without an offset (``Europe/Berlin``); None refuses them.
    """

    format: str = "iso8601"
    zone: str | None = None


class ImageLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an encoded image may be. Read off its header: nothing is decoded. Sizes in pixels, inclusive."""

    formats: tuple[ImageFormat, ...] = tuple(ImageFormat)
    min_width: Positive | None = None
    max_width: Positive | None = None
    min_height: Positive | None = None
    max_height: Positive | None = None
    max_pixels: Positive | None = None


class AxisLimit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How long a dynamic axis may be, ends included; axis 0 is the batch."""

    axis: Annotated[int, msgspec.Meta(ge=0)]
    minimum: Positive = 1
    maximum: Positive | None = None


class Constraint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the values of one tensor must satisfy.

    Args:
        minimum: Smallest allowed value, inclusive; of text with a ``number`` format, of the number it says.
        maximum: Largest allowed value, inclusive.
        allowed: The only values allowed: numbers, or text.
        nullable: Whether NaN (floats) or empty elements (BYTES) mean "missing" and are let through.
        fill: What a missing value, or one whose policy is ``fill``, is replaced by before the model sees it.
        unit: Unit of measurement, as UCUM writes it (``Cel``, ``m/s``, ``1``).
        sensitivity: How far the values may travel.
        encoding: Of text elements, which the model then sees in UTF-8; None means bytes of any kind.
        min_length: Of an element: characters where there is an encoding, else bytes.
        max_length: Of an element, inclusive.
        axes: Limits of dynamic axes.
        number: The elements are numbers, written as text.
        date: The elements are points in time, written as text.
        image: The elements are encoded images.
        policies: What becomes of values that break a rule; ``reject`` where nothing is said.
    """

    minimum: float | None = None
    maximum: float | None = None
    allowed: tuple[float | str, ...] | None = None
    nullable: bool = False
    fill: float | str | None = None
    unit: str | None = None
    sensitivity: Sensitivity = Sensitivity.PUBLIC
    encoding: Encoding | None = None
    min_length: Length | None = None
    max_length: Length | None = None
    axes: tuple[AxisLimit, ...] = ()
    number: NumberFormat | None = None
    date: DateFormat | None = None
    image: ImageLimits | None = None
    policies: dict[Rule, Policy] = {}

    def policy(self, rule: Rule) -> Policy:
        """What becomes of a value that breaks ``rule``."""
        return self.policies.get(rule, Policy.REJECT)

    @property
    def text_encoding(self) -> Encoding | None:
        """The encoding of the elements where they are text; numbers and dates are UTF-8 where nothing else is said."""
        if self.encoding is None and (self.number is not None or self.date is not None):
            return Encoding.UTF_8
        return self.encoding

    @property
    def empty_is_missing(self) -> bool:
        """Whether an empty BYTES element counts as missing; elsewhere it is a value like any other."""
        return (
            self.nullable
            or Rule.MISSING in self.policies
            or self.number is not None
            or self.date is not None
            or self.image is not None
            or (self.allowed is not None and "" not in self.allowed)
        )
