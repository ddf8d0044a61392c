"""A trained model as the package that is signed, published and installed."""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.contract.manifest import FULL_PRECISION, INT8, FileEntry, Lineage, Manifest, Variant
from edge_agent.runtime.package import Package
from edge_agent.runtime.package_writer import write_package
from trainer.recipe import Recipe
from trainer.release.export import MODEL_FILE, WEIGHTS_FILE

# What the weights depend on besides the recipe and the data.
_DISTRIBUTIONS = ("torch", "pytorch-lightning", "numpy", "onnx", "onnxscript", "onnxruntime", "scikit-learn")


@dataclass(frozen=True, kw_only=True)
class Known:
    """What more the lineage says, so that training can be done again: see the manifest's ``Lineage``.

    Args:
        inputs: Digest of all that the weights follow from.
    """

    inputs: str | None = None
    content: str | None = None
    samples_version: int | None = None
    labels_version: int | None = None
    replay_version: int | None = None
    labels_until_ms: int | None = None
    champion: str | None = None
    processes: int | None = None
    trainer_sha256: str | None = None


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
    known: Known = Known()

    def lineage(self, recipe: Recipe) -> Lineage:
        """As the manifest has it, trained now."""
        return Lineage(
            dataset=self.dataset,
            code_sha256=recipe.digest,
            lock_sha256=lock_digest(),
            seed=self.seed,
            run=self.run,
            trained_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            inputs=self.known.inputs,
            content=self.known.content,
            samples_version=self.known.samples_version,
            labels_version=self.known.labels_version,
            replay_version=self.known.replay_version,
            labels_until_ms=self.known.labels_until_ms,
            champion=self.known.champion,
            processes=self.known.processes,
            trainer_sha256=self.known.trainer_sha256,
        )


def write_candidate(folder: Path, recipe: Recipe, identity: Identity, model: Mapping[str, bytes | Path]) -> Package:
    """A package of the model, so that the devices' own runtime can judge it before there is more to say."""
    return write_package(folder, files=dict(model), manifest=lambda entries: _manifest(recipe, identity, entries))


def write_release(
    folder: Path, recipe: Recipe, identity: Identity, forms: Package, reports: Mapping[str, bytes | Path]
) -> Package:
    """The whole package.

    Args:
        forms: The models with their golden samples.
        reports: What is said of them, by file: reference profile, evaluation, parity, card and its plots.
    """
    files: dict[str, bytes | Path] = {name: forms.path(name) for name in forms.manifest.files}
    return write_candidate(folder, recipe, identity, files | dict(reports))


def lock_digest() -> str:
    """SHA-256 over the installed versions of what training depends on."""
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in _DISTRIBUTIONS]
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()


def _manifest(recipe: Recipe, identity: Identity, entries: dict[str, FileEntry]) -> Manifest:
    variants = {FULL_PRECISION: Variant(model=MODEL_FILE, data=(WEIGHTS_FILE,) if WEIGHTS_FILE in entries else ())}
    if (small := f"{INT8}/{MODEL_FILE}") in entries:
        variants[INT8] = Variant(model=small)
    return Manifest(
        name=recipe.name,
        version=identity.version,
        parent=identity.parent,
        lineage=identity.lineage(recipe),
        signature=recipe.signature,
        task=recipe.task,
        variants=variants,
        files=entries,
        slices=recipe.file.slices,
        sampling=recipe.file.sampling,
        resources=recipe.file.resources,
        objectives=recipe.file.objectives,
        shadow=recipe.file.shadow,
        probation=recipe.file.probation,
        requires=recipe.file.requires,
        batching=recipe.file.batching,
        max_run_s=recipe.file.max_run_s,
    )
