"""What the columns of a table are to a model: numbers, categories, dates, numbers written as text. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from edge_agent.contract.constraint import DateFormat, NumberFormat
from edge_agent.contract.text_formats import DateText, NumberText, TextFormat
from trainer.errors import DatasetError

_MOST_CATEGORIES = 100
_MOST_CLASSES = 1000
# Of the texts of a column: one that is so often another is no category, but a name or a remark.
_MOST_DISTINCT = 0.5
_NUMBERS = {
    "{ }": NumberFormat(),
    '{ decimal = "," }': NumberFormat(decimal=","),
    '{ decimal = ",", grouping = "." }': NumberFormat(decimal=",", grouping="."),
    '{ grouping = "," }': NumberFormat(grouping=","),
}
# Day before month is tried first: where no day is above 12, nobody could tell.
_DATES = ("iso8601", "%d.%m.%Y", "%d.%m.%Y %H:%M", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One input that a table's column makes.

    Args:
        name: Of the input; ``source``: of the column.
        kind: ``number``, ``category``, ``date`` or ``number as text``.
        constraint: Members of the TOML table of that name, as TOML writes them.
        datatype, shape: As ``model.toml`` has them.
    """

    name: str
    source: str
    kind: str
    constraint: dict[str, str] = field(default_factory=dict)
    datatype: str = "FP32"
    shape: tuple[int, ...] = (-1,)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What was made of a table.

    Args:
        classes: Labels that occur, in the order of their names.
        left_out: Columns that are no input, and why.
    """

    columns: tuple[Column, ...]
    classes: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


def lay_out(table: pa.Table, *, label: str, besides: Iterable[str] = ()) -> Layout:
    """What each column of a table's first rows is to a model that tells the label.

    Args:
        besides: Columns that are no inputs: what a row is called, what its group is.
    Raises:
        DatasetError: There is no such column, fewer than two classes, or no column that can be an input.
    """
    given = [name for name in besides if name]
    for name in (label, *given):
        if name not in table.column_names:
            raise DatasetError(f"there is no column '{name}'; there are: {', '.join(table.column_names)}")
    classes = sorted({_word(value) for value in table[label].to_pylist()} - {""})
    if not 2 <= len(classes) <= _MOST_CLASSES:
        raise DatasetError(
            f"column '{label}' has {len(classes)} different values in the first {len(table)} rows; a label needs 2 to "
            f"{_MOST_CLASSES}"
        )
    columns: list[Column] = []
    left_out: list[tuple[str, str]] = []
    for source in table.column_names:
        if source in {label, *given}:
            continue
        name = _unused(_input_name(source), {column.name for column in columns})
        found = _column(name, source, table[source].combine_chunks())
        if isinstance(found, Column):
            columns.append(found)
        else:
            left_out.append((source, found))
    if not columns:
        raise DatasetError(f"no column can be an input: {'; '.join(f'{name}: {why}' for name, why in left_out)}")
    return Layout(columns=tuple(columns), classes=tuple(classes), left_out=tuple(left_out))


def _column(name: str, source: str, values: pa.Array) -> Column | str:
    """What a column is, or why it can be none."""
    kind = values.type
    missing = {"nullable": "true"} if values.null_count else {}
    if values.null_count == len(values):
        return "it has no values"
    if pa.types.is_dictionary(kind):
        values = values.dictionary_decode()
        kind = values.type
    if pa.types.is_temporal(kind) and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        return Column(name=name, source=source, kind="date", datatype="BYTES", constraint=_date("iso8601") | missing)
    if pa.types.is_boolean(kind) and not missing:
        return Column(name=name, source=source, kind="number", datatype="BOOL")
    if (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    ):
        numbers = np.array([np.nan if each is None else float(each) for each in values.to_pylist()])
        nan = {"nullable": "true"} if np.isnan(numbers).any() else {}
        return Column(name=name, source=source, kind="number", constraint=_range(numbers) | nan)
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return _list(name, source, values)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _text(name, source, [each for each in values.to_pylist() if each], missing, len(values))
    return f"it holds {kind}, of which no input can be made"


def _list(name: str, source: str, values: pa.Array) -> Column | str:
    lengths = {len(each) for each in values.to_pylist() if each is not None}
    if len(lengths) > 1 or values.null_count or not lengths or not _is_number(values.type.value_type):
        return "its cells are no lists of numbers of one length; see the recipe bearing for series of any length"
    return Column(name=name, source=source, kind="number", shape=(-1, lengths.pop()))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _text(name: str, source: str, words: list[str], missing: dict[str, str], rows: int) -> Column | str:
    if not words:
        return "it has no values"
    if len(words) < rows:
        missing = {"nullable": "true"}
    if _all(words, NumberText(NumberFormat())):
        numbers = np.array([float(word) for word in words])
        return Column(name=name, source=source, kind="number", constraint=_range(numbers) | missing)
    for pattern in _DATES:
        if _all(words, DateText(DateFormat(format=pattern, zone="UTC"))):
            return Column(name=name, source=source, kind="date", datatype="BYTES", constraint=_date(pattern) | missing)
    for written, form in _NUMBERS.items():
        if _all(words, NumberText(form)):
            about = {"number": written} | missing
            return Column(name=name, source=source, kind="number as text", datatype="BYTES", constraint=about)
    distinct = sorted(set(words))
    if len(distinct) <= min(_MOST_CATEGORIES, max(2, _MOST_DISTINCT * len(words))):
        listed = ", ".join(quoted(word) for word in distinct)
        about = {"encoding": '"utf-8"', "allowed": f"[{listed}]"} | missing
        about["policies"] = '{ enumeration = "flag" }'
        return Column(name=name, source=source, kind="category", datatype="BYTES", constraint=about)
    return (
        f"it has {len(distinct)} different texts in {len(words)} rows, which are neither categories, dates nor numbers"
    )


def _all(words: list[str], form: TextFormat) -> bool:
    try:
        for word in words:
            form.normalise(word)
    except ValueError:
        return False
    return True


def _date(pattern: str) -> dict[str, str]:
    return {"date": f'{{ format = {quoted(pattern)}, zone = "UTC" }}'}


def _range(numbers: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, str]:
    """The values seen, and as much again on either side; what lies beyond is let through, and counted.

    Rounded away from them, to one digit of how far they reach; what is never negative is not expected to become so.
    """
    seen = numbers[np.isfinite(numbers)]
    if not len(seen):
        return {}
    low, high = float(seen.min()), float(seen.max())
    reach = high - low or abs(high) or 1.0
    if not math.isfinite(reach):
        return {}
    unit = Decimal(1).scaleb(math.floor(math.log10(reach)))
    bottom = ((Decimal(low) - Decimal(reach)) / unit).to_integral_value(ROUND_FLOOR) * unit
    top = ((Decimal(high) + Decimal(reach)) / unit).to_integral_value(ROUND_CEILING) * unit
    return {
        "minimum": repr(float(max(bottom, Decimal(0)) if low >= 0 else bottom)),
        "maximum": repr(float(min(top, Decimal(0)) if high < 0 else top)),
        "policies": '{ range = "flag" }',
    }


def _input_name(source: str) -> str:
    """A name that Python, JSON and command lines take."""
    name = re.sub(r"[^a-z0-9]+", "_", source.lower()).strip("_")
    return name if name and not name[0].isdigit() else f"column_{name}".rstrip("_")


def _unused(name: str, used: set[str]) -> str:
    number, free = 2, name
    while free in used:
        free, number = f"{name}_{number}", number + 1
    return free


def _word(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def quoted(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\u{ord(found[0]):04x}", escaped) + '"'
