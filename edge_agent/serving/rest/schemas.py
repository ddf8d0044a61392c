"""JSON Schemas (2020-12, as OpenAPI 3.1 has them) of a signature's tensors, as precise as the signature is.

What a policy lets through (clipped, filled, flagged) is no error, so it is told in words and not as a bound: a
generated client must not refuse what the device accepts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_agent.contract.constraint import Constraint, Policy, Rule
from edge_agent.contract.signature import TensorSpec
from edge_agent.contract.tensors import Datatype

# Of ratios and counts, in the Unified Code for Units of Measure.
_DIMENSIONLESS = "1"
Schema = dict[str, Any]
# The formats of OpenAPI's registry; generators choose the width of a number by them.
_FORMATS: Mapping[Datatype, str] = {
    Datatype.FP32: "float",
    Datatype.FP64: "double",
    Datatype.INT8: "int8",
    Datatype.INT16: "int16",
    Datatype.INT32: "int32",
    Datatype.INT64: "int64",
    Datatype.UINT8: "uint8",
    Datatype.UINT16: "uint16",
    Datatype.UINT32: "uint32",
    Datatype.UINT64: "uint64",
}


def tensor_schema(spec: TensorSpec, title: str, *, request: bool) -> Schema:
    """The schema of one tensor in a JSON request or answer.

    Args:
        request: Whether applications send it: then its constraints are part of it.
    """
    elements = elements_per_row(spec)
    data: Schema = {
        "type": "array",
        "description": "Flat, row-major." + (" Nested lists are accepted too." if request else ""),
        "items": _element(spec, request=request),
    }
    if elements is not None:
        data["minItems"] = elements
        if spec.shape[0] is not None:
            data["minItems"] = data["maxItems"] = elements * spec.shape[0]
    schema: Schema = {
        "type": "object",
        "title": title,
        "description": _described(spec),
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"type": "string", "enum": [spec.name]},
            "datatype": {"type": "string", "enum": [spec.datatype.value]},
            "shape": _shape(spec),
            "data": data,
            "parameters": {"type": "object", "additionalProperties": True},
        },
    }
    if spec.constraint.unit is not None:
        schema["x-unit"] = spec.constraint.unit
    if spec.labels is not None:
        schema["x-labels"] = list(spec.labels)
    return schema


def elements_per_row(spec: TensorSpec) -> int | None:
    """Elements of one row; None where an axis is open."""
    axes = [axis for axis in spec.shape[1:] if axis is not None]
    return math.prod(axes) if len(axes) == len(spec.shape) - 1 else None


def _shape(spec: TensorSpec) -> Schema:
    limits = {limit.axis: limit for limit in spec.constraint.axes}
    axes: list[Schema] = []
    for index, axis in enumerate(spec.shape):
        if axis is not None:
            axes.append({"type": "integer", "const": axis})
            continue
        open_axis: Schema = {"type": "integer", "minimum": 1}
        if index in limits:
            open_axis["minimum"] = limits[index].minimum
            if limits[index].maximum is not None:
                open_axis["maximum"] = limits[index].maximum
        axes.append(open_axis)
    return {
        "type": "array",
        "description": "Axis sizes; axis 0 is the rows.",
        "prefixItems": axes,
        "items": {"type": "integer", "minimum": 1},
        "minItems": len(axes),
        "maxItems": len(axes),
    }


def _element(spec: TensorSpec, *, request: bool) -> Schema:
    if spec.datatype is Datatype.BYTES:
        schema: Schema = _text(spec.constraint) if request else {"type": "string"}
    elif spec.datatype is Datatype.BOOL:
        schema = {"type": "boolean"}
    else:
        schema = _number(spec, request=request)
    if not request:
        return schema
    limits = spec.constraint
    if limits.allowed is not None and limits.policy(Rule.ENUMERATION) is Policy.REJECT:
        schema["enum"] = [_plain(spec.datatype, value) for value in limits.allowed]
    may_be_missing = limits.nullable or limits.policy(Rule.MISSING) is not Policy.REJECT
    if may_be_missing and spec.datatype.numpy.kind == "f":
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"].append(None)
    return schema


def _number(spec: TensorSpec, *, request: bool) -> Schema:
    datatype, limits = spec.datatype, spec.constraint
    whole = datatype.numpy.kind in "iu"
    schema: Schema = {"type": "integer" if whole else "number"}
    if datatype in _FORMATS:
        schema["format"] = _FORMATS[datatype]
    low: float | None = None
    high: float | None = None
    if whole:
        low, high = int(np.iinfo(datatype.numpy).min), int(np.iinfo(datatype.numpy).max)
    if request and limits.policy(Rule.RANGE) is Policy.REJECT:
        low = low if limits.minimum is None else _bound(limits.minimum, whole=whole, up=True)
        high = high if limits.maximum is None else _bound(limits.maximum, whole=whole, up=False)
    if low is not None:
        schema["minimum"] = low
    if high is not None:
        schema["maximum"] = high
    return schema


def _bound(value: float, *, whole: bool, up: bool) -> float:
    return value if not whole else math.ceil(value) if up else math.floor(value)


def _text(limits: Constraint) -> Schema:
    schema: Schema = {"type": "string"}
    # Lengths count characters, as JSON Schema does, only where the elements are text.
    if limits.text_encoding is not None and limits.policy(Rule.LENGTH) is Policy.REJECT:
        if limits.min_length is not None and not limits.empty_is_missing:
            schema["minLength"] = limits.min_length
        if limits.max_length is not None:
            schema["maxLength"] = limits.max_length
    if limits.date is not None:
        schema["description"] = f"A point in time: {_date_words(limits)}."
    elif limits.number is not None:
        schema["description"] = f"A number as text, such as 1234{limits.number.decimal}5."
    elif limits.image is not None:
        schema["contentMediaType"] = "image/*"
        schema["description"] = "An encoded image; its bytes are no JSON text: send this tensor in binary."
    return schema


def _date_words(limits: Constraint) -> str:
    if limits.date is None:
        return ""
    form = "ISO 8601" if limits.date.format == "iso8601" else f"strptime pattern {limits.date.format}"
    return form if limits.date.zone is None else f"{form}, without an offset in {limits.date.zone}"


def _plain(datatype: Datatype, value: float | str) -> Any:
    if isinstance(value, str):
        return value
    kind = datatype.numpy.kind
    return bool(value) if kind == "b" else int(value) if kind in "iu" else value


def _described(spec: TensorSpec) -> str:
    """The contract in one line, for people: ``FP32 [-1, 3], 0 to 1, in Cel``."""
    limits = spec.constraint
    shape = ", ".join("-1" if axis is None else str(axis) for axis in spec.shape)
    parts = [f"{spec.datatype.value} [{shape}]"]
    if limits.minimum is not None or limits.maximum is not None:
        parts.append(_from_to(limits.minimum, limits.maximum))
    if limits.allowed is not None:
        parts.append("one of " + ", ".join(str(_plain(spec.datatype, value)) for value in limits.allowed[:20]))
    if limits.min_length is not None or limits.max_length is not None:
        what = "bytes" if limits.text_encoding is None else "characters"
        parts.append(f"{_from_to(limits.min_length, limits.max_length)} {what} long")
    if limits.text_encoding is not None:
        parts.append(f"text in {limits.text_encoding.value}")
    parts += [f"axis {one.axis} {_from_to(one.minimum, one.maximum)} long" for one in limits.axes]
    if limits.unit is not None:
        parts.append("no unit" if limits.unit == _DIMENSIONLESS else f"in {limits.unit}")
    if limits.nullable:
        parts.append("may be missing" + ("" if limits.fill is None else f" (then {limits.fill})"))
    if limits.date is not None:
        parts.append(f"a point in time: {_date_words(limits)}")
    if limits.image is not None:
        parts.append("encoded images: " + ", ".join(form.value for form in limits.image.formats))
    lenient = {rule: policy for rule, policy in limits.policies.items() if policy is not Policy.REJECT}
    parts += [f"{rule.value}: {_policy_words(policy, limits)}" for rule, policy in lenient.items()]
    if spec.labels is not None:
        parts.append("classes " + ", ".join(spec.labels[:20]) + (" and more" if len(spec.labels) > 20 else ""))
    return "; ".join(parts)


def _policy_words(policy: Policy, limits: Constraint) -> str:
    return f"fill with {limits.fill}" if policy is Policy.FILL else policy.value


def _from_to(low: float | None, high: float | None) -> str:
    words = ("" if low is None else f"from {low:g}", "" if high is None else f"to {high:g}")
    return " ".join(word for word in words if word)
