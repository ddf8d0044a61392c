"""An inference request and its answer, whatever brought it: HTTP, gRPC, a frame, or a call in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from edge_agent.contract.checking import Violation
from edge_agent.contract.errors import MalformedRequest
from edge_agent.contract.signature import Signature

MAX_ID_LENGTH = 128


class WantedOutput(NamedTuple):
    """One output that a request wants.

    Args:
        binary: As raw bytes after the JSON rather than in it.
        classes: The so many best classes in place of the values; 0 for the values.
        region: Shared memory that takes the values; None for the answer itself.
        offset: Where in that region, in bytes.
        size: Room there, in bytes.
    """

    name: str
    binary: bool = False
    classes: int = 0
    region: str | None = None
    offset: int = 0
    size: int = 0


@dataclasses.dataclass(slots=True)
class InferenceRequest:
    """A decoded request; the tensors' names, datatypes and shapes are not yet checked against a model.

    Args:
        id: As the application chose it; empty where it chose none.
        inputs: By name; may be read-only views on what was received.
        outputs: Wanted outputs in the request's order; None wants all.
        binary: Whether outputs are wanted in binary where nothing else is said.
        monitored: False for a probe, which is neither counted nor sampled.
        group: What the rows of one subject share; empty where the application says nothing.
        priority: 1 is the most urgent; 0 where the application says nothing, which ranks below all that do.
        timeout_us: Microseconds after which the answer is not wanted any more; 0 sets no limit.
        flagged: What was found while it was decoded, and let through: units that differ.
    """

    id: str
    inputs: dict[str, NDArray[Any]]
    outputs: tuple[WantedOutput, ...] | None = None
    binary: bool = False
    monitored: bool = True
    group: str = ""
    priority: int = 0
    timeout_us: int = 0
    flagged: tuple[Violation, ...] = ()


class InferenceAnswer(NamedTuple):
    """What a model said.

    Args:
        request_id: The request's own, or one made for it; feedback refers to it.
        outputs: All of the model's, by name, in the signature's order; owned by the receiver.
        label_wanted: Whether the application is asked for a label.
        violations: What broke a constraint and was let through: clipped, filled or flagged.
    """

    model: str
    version: str
    package: str
    request_id: str
    outputs: dict[str, NDArray[Any]]
    label_wanted: bool
    violations: tuple[Violation, ...]

    @property
    def violations_text(self) -> str:
        """The violations as a parameter of the protocol carries them: ``image/range/clip=3;...``."""
        return ";".join(f"{each.tensor}/{each.rule}/{each.policy}={each.rows}" for each in self.violations)


class SharedRun(NamedTuple):
    """What a model said in one run to several requests of one row each.

    Args:
        request_ids: By request, made for them.
        outputs: All of the model's, by name; row by row those of the requests.
        asked: The requests whose applications are asked for a label, by index.
    """

    model: str
    version: str
    package: str
    request_ids: Sequence[str]
    outputs: Mapping[str, NDArray[Any]]
    asked: Collection[int]

    def answer(self, index: int) -> InferenceAnswer:
        """That to one of the requests."""
        outputs = {name: array[index : index + 1] for name, array in self.outputs.items()}
        asked = index in self.asked
        return InferenceAnswer(self.model, self.version, self.package, self.request_ids[index], outputs, asked, ())


def check_outputs(request: InferenceRequest, signature: Signature) -> None:
    """Refuse wanted outputs that the model does not have, before it runs.

    Raises:
        MalformedRequest: It names the output and those that there are.
    """
    known = [spec.name for spec in signature.outputs]
    for wanted in request.outputs or ():
        if wanted.name not in known:
            raise MalformedRequest(f"output '{wanted.name}': the model has no such output; it has: {', '.join(known)}")
