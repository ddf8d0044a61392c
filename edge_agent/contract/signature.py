"""What a model takes and gives: names, datatypes, shapes and constraints."""

from __future__ import annotations

import msgspec

from edge_agent.contract.constraint import Constraint
from edge_agent.contract.constraint_sense import check_constraint
from edge_agent.contract.errors import ManifestError, SignatureMismatch
from edge_agent.contract.tensors import Datatype


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model input or output.

    Args:
        shape: Axis sizes; ``None`` is dynamic. Axis 0 is the batch. NCHW: ``(None, 3, 224, 224)``.
        labels: Names of the classes along the last axis, for a classifier's output.
    """

    name: str
    datatype: Datatype
    shape: tuple[int | None, ...]
    constraint: Constraint = Constraint()
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ManifestError("a tensor of the signature has no name")
        if not self.shape or any(axis is not None and axis < 1 for axis in self.shape):
            raise ManifestError(f"{self.name}: needs at least one axis, each >= 1 or dynamic, got {self.shape}")
        check_constraint(self.name, self.datatype, self.shape, self.constraint)
        if self.labels is not None and self.shape[-1] not in (None, len(self.labels)):
            raise ManifestError(f"{self.name}: {len(self.labels)} labels for a last axis of {self.shape[-1]}")


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """A model's inputs and outputs, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for side, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [spec.name for spec in specs]
            if not names or len(set(names)) != len(names):
                raise ManifestError(f"{side}: needs at least one tensor and no name twice, got {names}")

    def input(self, name: str) -> TensorSpec:
        """The input called ``name``.

        Raises:
            SignatureMismatch: There is none.
        """
        for spec in self.inputs:
            if spec.name == name:
                return spec
        known = ", ".join(spec.name for spec in self.inputs)
        raise SignatureMismatch(name, rule="name", detail=f"the model has no such input; it has: {known}")
