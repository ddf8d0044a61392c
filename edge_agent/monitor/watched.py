"""One package that has answered requests, and what becomes of its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edge_agent.contract.errors import MalformedRequest
from edge_agent.contract.manifest import Manifest
from edge_agent.contract.messages import Sample
from edge_agent.contract.profile import Feature
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.monitor.predictions import Prediction
from edge_agent.monitor.remembered import Answered
from edge_agent.monitor.sampler import Draw, Sampler
from edge_agent.monitor.samples import row_of, travelling
from edge_agent.monitor.window import Window
from edge_agent.runtime.slots import LoadedModel


@dataclasses.dataclass
class Watched:
    """A package under watch. Holds no session: a replaced model's memory must come free.

    Args:
        inputs, outputs: Names of the tensors whose values may leave the device.
    """

    digest: str
    manifest: Manifest
    features: tuple[Feature, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sampler: Sampler
    lifetime_ms: int
    window: Window = dataclasses.field(default_factory=Window)

    @classmethod
    def begin(cls, loaded: LoadedModel, sampler: Sampler, policy: SamplingPolicy) -> Watched:
        """Watch a loaded model's package from now on."""
        signature = loaded.signature
        return cls(
            digest=loaded.digest,
            manifest=loaded.manifest,
            features=loaded.reference.features,
            inputs=travelling(signature.inputs),
            outputs=travelling(signature.outputs),
            sampler=sampler,
            lifetime_ms=int(policy.label_lifetime_s * 1000),
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    def class_name(self, index: int) -> str:
        """The class with this index; the index itself where the model gives more classes than the task names."""
        labels = self.manifest.task.labels
        return labels[index] if index < len(labels) else str(index)

    def answered(self, prediction: Prediction, draw: Draw | None, now_ms: int) -> Answered:
        """What is remembered of a row for its label."""
        return Answered(
            package=self.digest,
            prediction=self.class_name(prediction.best),
            confidence=prediction.confidence,
            inclusion_probability=draw.label_probability if draw is not None else 0.0,
            at_ms=now_ms,
            expires_ms=now_ms + self.lifetime_ms,
        )

    def sample(
        self,
        row_id: str,
        prediction: Prediction,
        draw: Draw,
        *,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
        row: int,
        group: str,
        now_ms: int,
    ) -> Sample:
        """A chosen row as it goes home."""
        return Sample(
            request_id=row_id,
            package=self.digest,
            at_ms=now_ms,
            reason=draw.reason,
            inclusion_probability=draw.probability,
            prediction=self.class_name(prediction.best),
            confidence=prediction.confidence,
            margin=prediction.margin,
            inputs=row_of(inputs, self.inputs, row),
            outputs=row_of(outputs, self.outputs, row),
            group=group,
            label_wanted=draw.label_wanted,
        )


def class_called(label: str | int, manifest: Manifest) -> str:
    """The class that the application means: by its name first, else by its index.

    Raises:
        MalformedRequest: The model has no such class.
    """
    labels = manifest.task.labels
    if str(label) in labels:
        return str(label)
    if isinstance(label, int) and 0 <= label < len(labels):
        return labels[label]
    known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    raise MalformedRequest(f"label {str(label)[:80]!r}: the model has no such class; it has: {known}")
