"""Whether a constraint makes sense for its tensor: no value, or the wrong ones, would satisfy one that does not.

A nonsense found here, when the recipe is read, is one that no device has to meet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_agent.contract.constraint import Constraint, Encoding, ImageLimits, NumberFormat, Policy, Rule
from edge_agent.contract.errors import ManifestError
from edge_agent.contract.tensors import Datatype
from edge_agent.contract.text_formats import DateText

_ALWAYS = frozenset({Policy.REJECT, Policy.FLAG})
# A policy that is not listed has no meaning: there is no nearest word of a list, and no image to put in place of one.
_POLICIES: Mapping[Rule, frozenset[Policy]] = {
    Rule.MISSING: _ALWAYS | {Policy.FILL},
    Rule.ENCODING: _ALWAYS | {Policy.FILL},
    Rule.NUMBER: _ALWAYS | {Policy.FILL},
    Rule.DATE: _ALWAYS | {Policy.FILL},
    Rule.LENGTH: _ALWAYS | {Policy.FILL, Policy.CLIP},
    Rule.RANGE: _ALWAYS | {Policy.FILL, Policy.CLIP},
    Rule.ENUMERATION: _ALWAYS | {Policy.FILL},
    Rule.IMAGE: _ALWAYS,
    Rule.UNIT: _ALWAYS,
}
_TEXT_MEMBERS = ("encoding", "min_length", "max_length", "number", "date", "image")


def check_constraint(name: str, datatype: Datatype, shape: tuple[int | None, ...], limits: Constraint) -> None:
    """Refuse a constraint that makes no sense for the tensor called ``name``.

    Raises:
        ManifestError: It names the tensor, the member, and why.
    """
    try:
        _check_members(datatype, limits)
        _check_range(datatype, limits)
        _check_allowed(datatype, limits)
        _check_fill(datatype, limits)
        _check_length(limits)
        _check_formats(limits)
        _check_axes(shape, limits)
        _check_policies(datatype, limits)
    except ValueError as error:
        raise ManifestError(f"{name}: {error}") from error


def value_range(datatype: Datatype, limits: Constraint) -> tuple[float | None, float | None]:
    """The bounds as the datatype holds them; None where every value of the datatype satisfies one.

    A bound counts as the datatype rounds it: 0.1 in FP32 is within a maximum of 0.1, though a little above. One that
    lies outside of all the datatype's finite values is the last of these: an infinity is still beyond it.
    """
    if datatype in {Datatype.BYTES, Datatype.BOOL}:  # a BOOL has no bounds, those of BYTES are of the numbers in it
        return limits.minimum, limits.maximum
    if datatype.numpy.kind != "f":
        info = np.iinfo(datatype.numpy)
        low = None if limits.minimum is None or limits.minimum <= info.min else math.ceil(limits.minimum)
        high = None if limits.maximum is None or limits.maximum >= info.max else math.floor(limits.maximum)
        return low, high
    smallest, largest = _ends(datatype)

    def held(bound: float | None) -> float | None:
        return None if bound is None else float(datatype.numpy.type(min(max(bound, smallest), largest)))

    return held(limits.minimum), held(limits.maximum)


def _check_members(datatype: Datatype, limits: Constraint) -> None:
    if datatype is not Datatype.BYTES:
        for member in _TEXT_MEMBERS:
            if getattr(limits, member) is not None:
                raise ValueError(f"{member} is for BYTES, this is {datatype.value}")
    given = [member for member in ("number", "date", "image") if getattr(limits, member) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are both given, but an element is only one of them")
    if limits.image is not None and limits.encoding is not None:
        raise ValueError("encoding is for text, but image says that the elements are images")
    if limits.unit is not None and not limits.unit.strip():
        raise ValueError("unit is empty; write 1 for numbers without a unit")


def _check_range(datatype: Datatype, limits: Constraint) -> None:
    low, high = limits.minimum, limits.maximum
    numeric = datatype not in {Datatype.BYTES, Datatype.BOOL} or limits.number is not None
    for bound in (low, high):
        if bound is not None and (not numeric or not math.isfinite(bound)):
            raise ValueError(
                f"{bound} bounds no {datatype.value}; give a finite number to a numeric tensor, or to text with a "
                "number format"
            )
    if low is not None and high is not None and low > high:
        raise ValueError(f"minimum {low} is above maximum {high}")
    if datatype is not Datatype.BYTES and (low is not None or high is not None):
        _check_some_value(datatype, limits)


def _check_some_value(datatype: Datatype, limits: Constraint) -> None:
    smallest, largest = _ends(datatype)
    low, high = value_range(datatype, limits)
    beyond = (limits.minimum is not None and limits.minimum > largest) or (
        limits.maximum is not None and limits.maximum < smallest
    )
    if beyond or (low is not None and high is not None and low > high):
        raise ValueError(
            f"no value of {datatype.value} lies within minimum {limits.minimum} and maximum {limits.maximum}"
        )


def _ends(datatype: Datatype) -> tuple[float, float]:
    """Smallest and largest finite value."""
    if datatype.numpy.kind == "f":
        largest = float(np.finfo(datatype.numpy).max)
        return -largest, largest
    info = np.iinfo(datatype.numpy)
    return info.min, info.max


def _check_allowed(datatype: Datatype, limits: Constraint) -> None:
    if limits.allowed is None:
        return
    if not limits.allowed:
        raise ValueError("the list of allowed values is empty")
    if limits.date is not None or limits.image is not None:
        raise ValueError("allowed lists numbers or words, but the elements are dates or images")
    held_as = Datatype.FP64 if limits.number is not None else datatype
    for value in limits.allowed:
        if not _holds(held_as, value):
            raise ValueError(f"allowed value {value!r} is no value of {_described(datatype, limits.number)}")


def _check_fill(datatype: Datatype, limits: Constraint) -> None:
    wanted = [rule.value for rule, policy in limits.policies.items() if policy is Policy.FILL]
    if limits.fill is None:
        if wanted:
            raise ValueError(f"policies.{wanted[0]} is fill, but there is no fill to put in place")
        return
    if not limits.nullable and not wanted:
        raise ValueError("fill is given, but the tensor is not nullable, and no policy is fill")
    if limits.image is not None:
        raise ValueError("fill cannot stand for an image; leave out nullable images, or tell them by a text of its own")
    if not _holds(datatype, limits.fill):
        raise ValueError(f"fill {limits.fill!r} is no value of {datatype.value}")


def _check_length(limits: Constraint) -> None:
    low, high = limits.min_length, limits.max_length
    if low is not None and high is not None and low > high:
        raise ValueError(f"min_length {low} is above max_length {high}")
    words = [value for value in limits.allowed or () if isinstance(value, str)]
    for word in words:
        length = len(word) if limits.text_encoding else len(word.encode())
        if not (low or 0) <= length <= (length if high is None else high):
            raise ValueError(f"allowed value {word!r:.60} does not have a length within min_length and max_length")
    signs = [] if limits.number is None else [limits.number.decimal, limits.number.grouping or ""]
    for text in (*words, *signs):
        _check_encoded(text, limits.text_encoding)


def _check_encoded(text: str, encoding: Encoding | None) -> None:
    if encoding is None:
        return
    try:
        text.encode(encoding.value)
    except UnicodeEncodeError:
        raise ValueError(f"{text!r:.60} cannot be written in the encoding {encoding.value}") from None


def _check_formats(limits: Constraint) -> None:
    if limits.number is not None:
        _check_number(limits.number)
    if limits.date is not None:
        try:
            DateText(limits.date)
        except ValueError as error:
            raise ValueError(f"date: {error}") from error
    if limits.image is not None:
        _check_image(limits.image)


def _check_number(number: NumberFormat) -> None:
    for member, sign in (("decimal", number.decimal), ("grouping", number.grouping)):
        if sign is not None and (len(sign) != 1 or sign.isalnum() or sign in "+-"):
            raise ValueError(f"number.{member} must be one sign, neither letter nor digit nor + or -, got {sign!r:.20}")
    if number.decimal == number.grouping:
        raise ValueError(f"number.decimal and number.grouping are both {number.decimal!r}")


def _check_image(image: ImageLimits) -> None:
    if not image.formats or len(set(image.formats)) != len(image.formats):
        raise ValueError("image.formats needs at least one format, and none twice")
    for side in ("width", "height"):
        low, high = getattr(image, f"min_{side}"), getattr(image, f"max_{side}")
        if low is not None and high is not None and low > high:
            raise ValueError(f"image.min_{side} {low} is above image.max_{side} {high}")
    smallest = (image.min_width or 1) * (image.min_height or 1)
    if image.max_pixels is not None and smallest > image.max_pixels:
        raise ValueError(f"image.max_pixels {image.max_pixels} is below the {smallest} of the smallest image allowed")


def _check_axes(shape: tuple[int | None, ...], limits: Constraint) -> None:
    named = [limit.axis for limit in limits.axes]
    for limit in limits.axes:
        if named.count(limit.axis) > 1:
            raise ValueError(f"axes: axis {limit.axis} stands twice")
        if limit.axis >= len(shape) or shape[limit.axis] is not None:
            raise ValueError(f"axes: axis {limit.axis} is not a dynamic one of the shape {_shape(shape)}")
        if limit.maximum is not None and limit.minimum > limit.maximum:
            raise ValueError(f"axes: axis {limit.axis}: minimum {limit.minimum} is above maximum {limit.maximum}")
        if limit.maximum is None and limit.minimum == 1:
            raise ValueError(f"axes: axis {limit.axis} has no limit; give it a maximum or a minimum above 1")


def _check_policies(datatype: Datatype, limits: Constraint) -> None:
    can_miss = datatype is Datatype.BYTES or datatype.numpy.kind == "f"
    given: Mapping[Rule, bool] = {
        Rule.MISSING: can_miss,
        Rule.ENCODING: limits.text_encoding is not None,
        Rule.NUMBER: limits.number is not None,
        Rule.DATE: limits.date is not None,
        Rule.LENGTH: limits.min_length is not None or limits.max_length is not None,
        Rule.RANGE: limits.minimum is not None or limits.maximum is not None,
        Rule.ENUMERATION: limits.allowed is not None,
        Rule.IMAGE: limits.image is not None,
        Rule.UNIT: limits.unit is not None,
    }
    for rule, policy in limits.policies.items():
        where = f"policies.{rule.value}"
        if not given[rule]:
            raise ValueError(f"{where} is given, but nothing of this tensor can break that rule")
        if policy not in _POLICIES[rule]:
            known = ", ".join(sorted(each.value for each in _POLICIES[rule]))
            raise ValueError(f"{where} cannot be {policy.value}; it can be: {known}")
    if limits.nullable and Rule.MISSING in limits.policies:
        raise ValueError("policies.missing is given, but nullable says that missing values are right")
    if limits.policy(Rule.LENGTH) is Policy.CLIP:
        _check_clipped_length(limits)


def _check_clipped_length(limits: Constraint) -> None:
    if limits.min_length:
        raise ValueError("policies.length is clip, which makes no text longer: leave min_length out, or do not clip")
    if limits.number is not None or limits.date is not None or limits.image is not None:
        raise ValueError("policies.length is clip, but a number, date or image that is cut says something else")


def _holds(datatype: Datatype, value: float | str) -> bool:
    """Whether a tensor can hold ``value``, but for rounding of fractions."""
    if isinstance(value, str) or datatype is Datatype.BYTES:
        return isinstance(value, str) and datatype is Datatype.BYTES
    if not math.isfinite(value):
        return False
    dtype: np.dtype[Any] = datatype.numpy
    if dtype.kind == "b":
        return value in (0, 1)
    if dtype.kind == "f":
        return abs(value) <= float(np.finfo(dtype).max)
    # JSON numbers arrive as doubles, which tell integers apart up to 2 ** 53 only.
    limits = np.iinfo(dtype)
    return value == int(value) and abs(value) <= 2**53 and limits.min <= value <= limits.max


def _described(datatype: Datatype, number: NumberFormat | None) -> str:
    return datatype.value if number is None else f"{datatype.value} with a number format, which takes numbers"


def _shape(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("-1" if axis is None else str(axis) for axis in shape) + "]"
