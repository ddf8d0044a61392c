"""How a new version's weights are released: rounded beside its parent's, as coarsely as the gate lets pass, or exact.

Steps are tried from coarse to fine. The first whose weights pass is released: near the exact ones, nothing lost that is
not noise, and the same verdict against the champion. A challenger whose exact weights are refused is not tried again in
other clothes: of many roundings one might pass by chance.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.contract.delta.make import make_delta
from edge_agent.contract.errors import ConfigurationError
from edge_agent.contract.manifest import EVALUATION_FILE, FULL_PRECISION, TENSORS_FILE
from edge_agent.contract.stored_tensors import StoredFile, StoredTensors, encode_stored_tensors
from edge_agent.runtime.backend import InferenceBackend
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package
from trainer.data.dataset import Dataset
from trainer.errors import UpdateNotQuantisable
from trainer.gates.evaluate import Evaluation
from trainer.gates.update_gate import Nearness, UpdateGate
from trainer.recipe import Recipe
from trainer.release.export import WEIGHTS_FILE
from trainer.release.package import Identity, write_candidate
from trainer.release.quantised_update import Difference, RoundedUpdate
from trainer.release.stored import joined, layout_of

# Steps in root mean squares of a tensor's update. Coarser than 2 hardly anything is left of it; below 0.15 the codes
# take more than a sixth of the file, and the exact difference not much more.
LADDER = (2.0, 1.5, 1.0, 0.7, 0.5, 0.3, 0.15)
QUANTISED, EXACT = "quantised", "exact"


@dataclass(frozen=True)
class Update:
    """How the weights travel to a device that has the parent.

    Args:
        reason: In words, with the figures.
        parent: Digest of the package that they are a difference of; None where they are exact.
        rounded, nearness: What was rounded and how near it is; None where they are exact.
        sent_bytes: Of the difference as the devices' codec packs it.
        tried: Coarser steps that did not pass, each with why.
    """

    reason: str
    parent: str | None = None
    rounded: RoundedUpdate | None = None
    nearness: Nearness | None = None
    sent_bytes: int = 0
    tried: tuple[tuple[float, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """What ``evaluation.json`` says of it."""
        tried = [{"factor": factor, "fault": fault} for factor, fault in self.tried]
        if self.rounded is None or self.nearness is None:
            return {"kind": EXACT, "reason": self.reason, "tried": tried}
        return {
            "kind": QUANTISED,
            "reason": self.reason,
            "parent": self.parent,
            "factor": self.rounded.factor,
            "bits": round(self.rounded.bits, 3),
            "full_bytes": self.rounded.size_bytes,
            "sent_bytes": self.sent_bytes,
            "percent_of_full": round(100 * self.sent_bytes / self.rounded.size_bytes, 2),
            **self.nearness.as_json(),
            "tried": tried,
        }


@dataclass(frozen=True)
class Released:
    """A challenger with the weights that are released.

    Args:
        backend: It, on the runtime that devices use.
        evaluation: The verdict on these very weights.
    """

    update: Update
    candidate: Package
    backend: OnnxBackend
    evaluation: Evaluation


def find_update(
    work: Path,
    recipe: Recipe,
    dataset: Dataset,
    identity: Identity,
    exact: Released,
    *,
    parent: Package | None,
    evaluate: Callable[[InferenceBackend], Evaluation],
) -> Released:
    """The challenger as it is released.

    Args:
        work: A folder for candidates on the way.
        exact: It with its weights as they were trained, which may be released.
        parent: The package that it was trained from; None where it began from scratch.
        evaluate: The verdict on other weights of the challenger.
    """
    difference = _difference(recipe, exact.candidate, parent)
    if isinstance(difference, str) or parent is None:
        return _exact(exact, f"exact: {difference}")
    gate = UpdateGate(recipe, dataset, exact.backend, seed=identity.seed)
    tried: list[tuple[float, str]] = []
    for factor in LADDER:
        try:
            candidate, rounded = rounded_candidate(
                work / f"factor-{factor:g}", recipe, identity, exact.candidate, difference, factor=factor
            )
        except UpdateNotQuantisable as error:
            return _exact(exact, f"exact: {error}", tried)
        backend = OnnxBackend(candidate, threads=recipe.file.training.threads)
        nearness = gate.judge(backend)
        fault = "; ".join(nearness.faults)
        if not fault:
            evaluation = evaluate(backend)
            if evaluation.released:
                sent = sent_bytes(candidate, parent, rounded.layout)
                reason = _in_words(rounded, nearness, sent)
                update = Update(reason, parent.digest, rounded, nearness, sent, tuple(tried))
                exact.backend.close()
                return Released(update, candidate, backend, evaluation)
            fault = f"with it the verdict is another: {evaluation.reasons[0]}"
        tried.append((factor, fault))
        backend.close()
        shutil.rmtree(candidate.folder)
    factor, fault = tried[-1]
    return _exact(exact, f"exact: no step passed; at the finest, {factor:g}, {fault}", tried)


def rounded_candidate(
    folder: Path, recipe: Recipe, identity: Identity, exact: Package, difference: Difference, *, factor: float
) -> tuple[Package, RoundedUpdate]:
    """The candidate with its weights rounded; equal arguments give equal bytes.

    Args:
        folder: Where its package shall lie.
        difference: Between ``exact`` and its parent.
    Raises:
        UpdateNotQuantisable: Nothing could be rounded.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes | Path] = {name: exact.path(name) for name in exact.manifest.files}
    with tempfile.TemporaryDirectory(prefix=".rounded-", dir=folder.parent) as place:
        weights = Path(place) / WEIGHTS_FILE
        rounded = difference.round_to(weights, factor=factor)
        layout = joined(layout_of(exact), StoredTensors(files={WEIGHTS_FILE: rounded.layout}))
        files |= {WEIGHTS_FILE: weights, TENSORS_FILE: encode_stored_tensors(layout)}
        return write_candidate(folder, recipe, identity, files), rounded


def difference_of(exact: Package, parent: Package) -> Difference:
    """What changed in a model's weights since its parent.

    Raises:
        UpdateNotQuantisable: They cannot be compared.
    """
    return Difference(*(each.path(each.manifest.variants[FULL_PRECISION].model) for each in (exact, parent)))


def factor_of(package: Package) -> float | None:
    """The factor that a package says its update was rounded by; None where its weights are exact.

    Raises:
        ConfigurationError: Its ``evaluation.json`` cannot be read.
    """
    try:
        said = json.loads(package.path(EVALUATION_FILE).read_bytes()).get("update") or {}
        return float(said["factor"]) if said.get("kind") == QUANTISED else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{package.folder}: its {EVALUATION_FILE} does not say by which factor its update was rounded"
        ) from error


def sent_bytes(candidate: Package, parent: Package, layout: StoredFile) -> int:
    """Bytes of the weights as a difference from the parent's, packed as the server does it."""
    before = layout_of(parent).files[WEIGHTS_FILE]
    with (
        parent.path(WEIGHTS_FILE).open("rb") as base,
        candidate.path(WEIGHTS_FILE).open("rb") as target,
        tempfile.TemporaryFile() as out,
    ):
        make_delta(base, target, out, base_layout=before, layout=layout)
        return out.tell()


def _difference(recipe: Recipe, exact: Package, parent: Package | None) -> Difference | str:
    """What changed since the parent; or in words why it is not to be rounded."""
    if recipe.file.release.update == EXACT:
        return 'the recipe says so ([release] update = "exact")'
    if parent is None:
        return "it was not trained from another package's weights, so that it is a difference of none"
    try:
        return difference_of(exact, parent)
    except UpdateNotQuantisable as error:
        return f"it is no difference of package {parent.digest[:12]}: {error}"


def _exact(exact: Released, reason: str, tried: list[tuple[float, str]] | None = None) -> Released:
    return Released(Update(reason, tried=tuple(tried or ())), exact.candidate, exact.backend, exact.evaluation)


def _in_words(rounded: RoundedUpdate, nearness: Nearness, sent: int) -> str:
    found = nearness.comparison
    assert found.champion is not None  # noqa: S101 - there are two
    assert found.low is not None  # noqa: S101
    assert found.high is not None  # noqa: S101
    assert found.difference is not None  # noqa: S101
    return (
        f"quantised in steps of {rounded.factor:g} RMS of what changed: {rounded.bits:.2f} bits per weight, "
        f"{100 * sent / rounded.size_bytes:.1f} % of the weights' {rounded.size_bytes} bytes; right on "
        f"{found.challenger:.1%} of {found.rows} held-out rows, the exact weights on {found.champion:.1%} (difference "
        f"{100 * found.difference:+.1f} points, interval {100 * found.low:+.1f} to {100 * found.high:+.1f})"
    )
