"""A trained model as the package that is signed, published and installed."""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.manifest import (
    CARD_FILE,
    EVALUATION_FILE,
    GOLDEN_FILE,
    REFERENCE_FILE,
    FileEntry,
    Lineage,
    Manifest,
    Variant,
)
from edge_agent.contract.profile import encode_profile
from edge_agent.runtime.backend import InferenceBackend
from edge_agent.runtime.package import Golden, Package, encode_golden
from edge_agent.runtime.package_writer import write_package
from trainer.data.dataset import Dataset
from trainer.gates.evaluate import Evaluation
from trainer.recipe import Recipe
from trainer.release.export import MODEL_FILE, WEIGHTS_FILE
from trainer.release.reference import Reference

_GOLDEN_ROWS = 16
# What the weights depend on besides the recipe and the data.
_DISTRIBUTIONS = ("torch", "pytorch-lightning", "numpy", "onnx", "onnxscript", "onnxruntime", "scikit-learn")


@dataclass(frozen=True)
class Identity:
    """Which model, and what it is a function of.

    Args:
        parent: Digest of the package whose weights it started from; None for the first.
        run: Identifier of the training run.
    """

    version: str
    parent: str | None
    dataset: str
    seed: int
    run: str

    def lineage(self, recipe: Recipe) -> Lineage:
        """As the manifest has it, trained now."""
        return Lineage(
            dataset=self.dataset,
            code_sha256=recipe.digest,
            lock_sha256=lock_digest(),
            seed=self.seed,
            run=self.run,
            trained_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        )


def write_candidate(folder: Path, recipe: Recipe, identity: Identity, model: Mapping[str, Path]) -> Package:
    """A package of the model alone, so that the devices' own runtime can judge it before there is more to say."""
    return write_package(folder, files=dict(model), manifest=lambda entries: _manifest(recipe, identity, entries))


def write_release(
    folder: Path,
    recipe: Recipe,
    identity: Identity,
    candidate: Package,
    backend: InferenceBackend,
    *,
    dataset: Dataset,
    evaluation: Evaluation,
    reference: Reference,
) -> Package:
    """The whole package: model, reference profile, golden samples, evaluation and card."""
    judged = evaluation_json(recipe, dataset, evaluation, reference)
    files: dict[str, bytes | Path] = {name: candidate.path(name) for name in candidate.manifest.files}
    files[REFERENCE_FILE] = encode_profile(reference.profile)
    files[GOLDEN_FILE] = encode_golden(_golden(dataset, backend))
    files[EVALUATION_FILE] = json.dumps(judged, indent=1).encode() + b"\n"
    files[CARD_FILE] = _card(recipe, identity, judged).encode()
    return write_package(folder, files=files, manifest=lambda entries: _manifest(recipe, identity, entries))


def evaluation_json(recipe: Recipe, dataset: Dataset, evaluation: Evaluation, reference: Reference) -> dict[str, Any]:
    """What ``evaluation.json`` says."""
    gates = {name: getattr(recipe.file.gates, name) for name in recipe.file.gates.__struct_fields__}
    promised = reference.profile
    return {
        **evaluation.as_json(),
        "accuracy": None if promised.accuracy is None else round(promised.accuracy, 4),
        "reference": {"source": reference.source, "rows": reference.rows, "devices": sorted(promised.devices)},
        "gates": gates,
        "dataset": dataset.summary(),
    }


def lock_digest() -> str:
    """SHA-256 over the installed versions of what training depends on."""
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in _DISTRIBUTIONS]
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()


def _manifest(recipe: Recipe, identity: Identity, entries: dict[str, FileEntry]) -> Manifest:
    data = (WEIGHTS_FILE,) if WEIGHTS_FILE in entries else ()
    return Manifest(
        name=recipe.name,
        version=identity.version,
        parent=identity.parent,
        lineage=identity.lineage(recipe),
        signature=recipe.signature,
        task=recipe.task,
        variants={"fp32": Variant(model=MODEL_FILE, data=data)},
        files=entries,
        slices=recipe.file.slices,
        sampling=recipe.file.sampling,
        resources=recipe.file.resources,
        objectives=recipe.file.objectives,
        probation=recipe.file.probation,
        batching=recipe.file.batching,
        max_run_s=recipe.file.max_run_s,
    )


def _golden(dataset: Dataset, backend: InferenceBackend) -> Golden:
    """A few held-out rows as applications send them, each class in turn, and what the packaged model itself answers."""
    rows = dataset.rows.take(dataset.holdout)
    rank = np.zeros(len(rows), dtype=np.int64)
    for target in set(rows.targets.tolist()):
        same = np.flatnonzero(rows.targets == target)
        rank[same] = np.arange(len(same))
    chosen: NDArray[np.int64] = np.lexsort((rows.targets, rank))[:_GOLDEN_ROWS]
    taken = rows.take(chosen)
    return Golden(inputs=taken.sent, outputs=backend.infer(taken.inputs))


def _card(recipe: Recipe, identity: Identity, judged: Mapping[str, Any]) -> str:
    """The model card (Mitchell et al. 2019): the recipe's own words, then what this version was measured to do."""
    readme = recipe.folder / "README.md"
    words = readme.read_text() if readme.is_file() else f"# {recipe.file.title}\n"
    dataset = judged["dataset"]
    lines = [
        words.rstrip(),
        "",
        f"## Version {identity.version}",
        "",
        _origin(identity, dataset),
        "",
        *(f"- {reason}" for reason in judged["reasons"]),
        "",
        "| slice | rows | champion | challenger |",
        "|---|---|---|---|",
        _card_row("today", judged["current"]),
    ]
    if judged["base"]:
        lines.append(_card_row("imported", judged["base"]))
    for name, parts in judged["slices"].items():
        lines.extend(_card_row(f"{name} {value}", part) for value, part in parts.items())
    return "\n".join([*lines, ""])


def _origin(identity: Identity, dataset: Mapping[str, Any]) -> str:
    start = f"package {identity.parent[:12]}" if identity.parent else "scratch"
    return (
        f"Trained from {start} on {dataset['train']} rows of dataset {dataset['digest'][:12]} ({dataset['imported']} "
        f"imported and {dataset['field']} field rows in all), seed {identity.seed}, run {identity.run}."
    )


def _card_row(name: str, part: Mapping[str, Any]) -> str:
    champion = f"{part['champion']:.1%}" if "champion" in part else ""
    return f"| {name} | {part['rows']} | {champion} | {part['challenger']:.1%} |"
