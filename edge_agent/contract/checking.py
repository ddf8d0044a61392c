"""The check of a request's tensors against a signature, compiled once per model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from edge_agent.contract.signature import Signature


class Violation(NamedTuple):
    """Values that broke a constraint and were let through.

    Args:
        tensor: Name of the input.
        rule: The constraint: ``range``, ``enumeration``, ``missing``...
        policy: What was done: ``clip``, ``fill`` or ``flag``.
        rows: How many rows of the request it concerns; ``first_row``: the first of them.
        value: The first such value, as text.
    """

    tensor: str
    rule: str
    policy: str
    rows: int
    first_row: int
    value: str


class Checked(NamedTuple):
    """Inputs as the model may see them, in the signature's order."""

    inputs: dict[str, NDArray[Any]]
    violations: tuple[Violation, ...] = ()


class InputCheck:
    """Checks requests for one model; may be called from several threads.

    Args:
        signature: Its inputs are what is checked.
    """

    def __init__(self, signature: Signature) -> None:
        self._signature = signature

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Checked:
        """The inputs as the model may see them: in order, missing values filled.

        Args:
            inputs: By name; axis 0 is N, the same for all.
        Raises:
            SignatureMismatch: A name, datatype, shape or value breaks the signature; it names tensor, row and rule.
        """
        return Checked(self._signature.check(inputs))
