"""The check of a request's tensors against a signature, compiled once per model.

The order in which faults are found: unknown or absent names; then, input by input, datatype, shape, missing values,
encoding, number or date, length, range, enumeration, image. Each rule sees what those before it left: a value that was
clipped is looked up in the enumeration as it now is. Fills come last, and are not checked themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from numpy.typing import NDArray

from edge_agent.contract.constraint import Policy, Rule
from edge_agent.contract.errors import SignatureMismatch
from edge_agent.contract.number_check import NumberCheck
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.contract.text_check import TextCheck
from edge_agent.contract.violations import Violation, shown

__all__ = ["Checked", "InputCheck", "Violation", "check_unit"]


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
        self._checks = tuple(_compiled(spec) for spec in signature.inputs)
        self._names = frozenset(check.name for check in self._checks)

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Checked:
        """The inputs as the model may see them: in order, clipped, filled and normalised.

        Args:
            inputs: By name; axis 0 is N, the same for all. Never written to.
        Returns:
            The same arrays, but for copies of those in which something had to change, and of big-endian numbers and
            text that is not yet an object array of ``bytes``; and what was let through although it broke a rule.
        Raises:
            SignatureMismatch: A name, datatype, shape or value breaks the signature; it names tensor, row and rule.
        """
        if inputs.keys() != self._names:
            self._refuse_names(inputs)
        checked: dict[str, NDArray[Any]] = {}
        found: list[Violation] = []
        rows = -1
        for check in self._checks:
            array = check(inputs[check.name], found)
            if len(array) != rows:
                if rows >= 0:
                    self._refuse_rows(check.name, len(array), rows)
                rows = len(array)
            checked[check.name] = array
        return Checked(checked, tuple(found)) if found else Checked(checked)

    def _refuse_names(self, inputs: Mapping[str, NDArray[Any]]) -> NoReturn:
        for name in inputs:
            self._signature.input(name)
        absent = next(spec.name for spec in self._signature.inputs if spec.name not in inputs)
        raise SignatureMismatch(absent, rule="name", detail="the request lacks this input")

    def _refuse_rows(self, name: str, found: int, rows: int) -> NoReturn:
        detail = f"{found} rows, but '{self._signature.inputs[0].name}' has {rows}"
        raise SignatureMismatch(name, rule="shape", detail=detail)


def check_unit(spec: TensorSpec, given: str, *, rows: int = 1) -> Violation | None:
    """Compare the unit that a request gives for an input with the constraint's; UCUM tells ``Cel`` from ``cel``.

    Args:
        given: As the application wrote it.
        rows: Of the request, for the violation.
    Returns:
        None where they are equal or the constraint has no unit; the violation where its policy is ``flag``.
    Raises:
        SignatureMismatch: They differ.
    """
    unit = spec.constraint.unit
    if unit is None or given == unit:
        return None
    if spec.constraint.policy(Rule.UNIT) is Policy.FLAG:
        return Violation(spec.name, Rule.UNIT.value, Policy.FLAG.value, rows, 0, shown(given))
    raise SignatureMismatch(
        spec.name, rule=Rule.UNIT.value, detail=f"the values are in {shown(given)}, the model takes {unit!r}"
    )


def _compiled(spec: TensorSpec) -> NumberCheck | TextCheck:
    return TextCheck(spec) if spec.datatype is Datatype.BYTES else NumberCheck(spec)
