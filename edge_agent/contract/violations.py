"""What a request's values break: refused, or told and let through, as the constraint's policies say."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.constraint import Constraint, Policy, Rule
from edge_agent.contract.errors import SignatureMismatch
from edge_agent.contract.signature import TensorSpec

_SHOWN = 60
_LISTED = 12


class Violation(NamedTuple):
    """Values that broke a constraint and were let through.

    Args:
        tensor: Name of the input.
        rule: The constraint: ``range``, ``enumeration``, ``missing``...
        policy: What was done: ``clip``, ``fill`` or ``flag``.
        rows: How many rows of the request it concerns.
        first_row: The first of them.
        value: The first such value, as text.
    """

    tensor: str
    rule: str
    policy: str
    rows: int
    first_row: int
    value: str


class Findings:
    """Applies the policies to one tensor of one request; its elements are counted flat, in row-major order.

    Args:
        shape: Of the tensor, axis 0 is N.
        found: Where violations that are let through are put.
    """

    def __init__(self, spec: TensorSpec, shape: tuple[int, ...], found: list[Violation]) -> None:
        self._spec, self._shape, self._found = spec, shape, found
        size = int(np.prod(shape))
        self.settled: NDArray[np.bool_] = np.zeros(size, dtype=bool)  # no later rule looks at these
        self.to_fill: NDArray[np.bool_] = np.zeros(size, dtype=bool)

    def place(self, index: int) -> tuple[int, ...]:
        """Where an element stands, by its flat index."""
        return tuple(int(axis) for axis in np.unravel_index(index, self._shape))

    def missing(self, mask: NDArray[np.bool_]) -> None:
        """Elements that are missing, bool[size]: right where the tensor is nullable, else a violation.

        Raises:
            SignatureMismatch: They may not be missing.
        """
        if not mask.any():
            return
        self.settled |= mask
        if not self._spec.constraint.nullable:
            why = "is not nullable, got a missing value (NaN or empty)"
            self.broken(Rule.MISSING, mask, self._missing_value(), why)
        elif self._spec.constraint.fill is not None:
            self.to_fill |= mask

    def broken(self, rule: Rule, mask: NDArray[np.bool_], value: str, why: str) -> Policy:
        """Elements that break a rule, bool[size], at least one; returns the policy, of which ``clip`` is left to do.

        Args:
            value: The first of them as text.
            why: What is wrong with it; goes on after the value.
        Raises:
            SignatureMismatch: The policy is to reject.
        """
        policy = self._spec.constraint.policy(rule)
        at = self.place(int(mask.argmax()))
        if policy is Policy.REJECT:
            where = ", ".join(str(axis) for axis in at)
            raise SignatureMismatch(
                self._spec.name, rule=rule.value, detail=f"value {value} at [{where}] {why}", row=at[0]
            )
        rows = int(mask.reshape(self._shape[0], -1).any(axis=1).sum())
        self._found.append(Violation(self._spec.name, rule.value, policy.value, rows, at[0], value))
        if policy is Policy.FILL:
            self.to_fill |= mask
            self.settled |= mask
        return policy

    def _missing_value(self) -> str:
        return "b''" if self._spec.datatype.size_bytes is None else "nan"


def shown(value: Any) -> str:
    """An element as an error shows it; long text is cut before it is written out."""
    return f"{value[:_SHOWN]!r:.{_SHOWN}}" if isinstance(value, (bytes, str)) else str(value)


def bound_text(bound: float) -> str:
    """A bound as a person writes it: 5 rather than 5.0."""
    return str(int(bound)) if bound == int(bound) and abs(bound) < 1e16 else str(bound)


def listed(allowed: tuple[float | str, ...]) -> str:
    """The values that are allowed, the first of them where they are many."""
    words = [repr(value) if isinstance(value, str) else bound_text(value) for value in allowed[:_LISTED]]
    more = f", ... ({len(allowed)} in all)" if len(allowed) > _LISTED else ""
    return f"[{', '.join(words)}{more}]"


def range_fault(limits: Constraint, *, below: bool) -> str:
    """What is wrong with a value out of range, in the words of the limits as they were given."""
    bound = limits.minimum if below else limits.maximum
    return f"is {'below the minimum' if below else 'above the maximum'} {bound_text(bound or 0.0)}"
