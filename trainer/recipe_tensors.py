"""What ``[[inputs]]`` and ``[[outputs]]`` of a recipe's ``model.toml`` hold, checked as they are read."""

from __future__ import annotations

import msgspec

from edge_agent.contract.constraint import AxisLimit, Constraint, DateFormat, ImageLimits, NumberFormat
from edge_agent.contract.signature import TensorSpec
from edge_agent.contract.tensors import Datatype

_DYNAMIC = -1


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table in which a misspelt key is an error."""


class NumberTable(NumberFormat, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``constraint.number``."""


class DateTable(DateFormat, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``constraint.date``."""


class ImageTable(ImageLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``constraint.image``."""


class AxisTable(AxisLimit, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of ``constraint.axes``."""


class ConstraintTable(Constraint, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``constraint``: as the manifest has it, but that a misspelt key is an error (docs/constraints.md)."""

    axes: tuple[AxisTable, ...] = ()
    number: NumberTable | None = None
    date: DateTable | None = None
    image: ImageTable | None = None

    def plain(self) -> Constraint:
        """The same as the contract writes it."""
        return msgspec.convert(msgspec.to_builtins(self), Constraint)


class TensorTable(Table, frozen=True, kw_only=True):
    """``[[inputs]]`` or ``[[outputs]]``.

    Args:
        shape: Axis sizes; -1 is dynamic; axis 0 is the batch and must be -1.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    constraint: ConstraintTable = ConstraintTable()
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.shape or self.shape[0] != _DYNAMIC:
            raise ValueError(f"{self.name}: shape must begin with -1, the batch, got {list(self.shape)}")

    def spec(self) -> TensorSpec:
        """The same as the contract writes it."""
        shape = tuple(None if axis == _DYNAMIC else axis for axis in self.shape)
        return TensorSpec(
            name=self.name,
            datatype=self.datatype,
            shape=shape,
            constraint=self.constraint.plain(),
            labels=self.labels,
        )
