"""Trains a released model again from its lineage, and proves that the weights come out byte for byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_agent.contract.errors import ConfigurationError
from edge_agent.contract.manifest import EVALUATION_FILE, FULL_PRECISION, INT8, TENSORS_FILE, digest_of
from edge_agent.contract.runs import RunFile
from edge_agent.runtime.package import Package, file_digest
from trainer.data.dataset import read_dataset
from trainer.data.records import DatasetRecord, find_record
from trainer.errors import UpdateNotQuantisable
from trainer.recipe import Recipe
from trainer.release.export import STATE_FILE
from trainer.release.forms import INT8_FILE, quantise_candidate, tensors_with_int8
from trainer.release.graph import differing_weights
from trainer.release.lineage import differences, known
from trainer.release.update_search import difference_of, factor_of, rounded_candidate
from trainer.work.challenger import Exported, train
from trainer.work.reporting import Report


@dataclass(frozen=True)
class FileProof:
    """One file of the model, then and now: SHA-256 each; ``now`` is empty where training again gave no such file."""

    name: str
    then: str
    now: str

    @property
    def is_equal(self) -> bool:
        """Whether they are the same bytes."""
        return self.then == self.now


@dataclass(frozen=True)
class Reproduction:
    """What came of training again.

    Args:
        files: Of the model: graph, weights, and its int8 form where the package has one.
        changed: What is not as it was when the package was made, in words.
        weights: Which weights differ and how much; empty where none do.
    """

    files: tuple[FileProof, ...]
    changed: tuple[str, ...]
    weights: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether every file came out byte for byte."""
        return all(each.is_equal for each in self.files)

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "equal": self.is_equal,
            "files": [{"name": each.name, "then": each.then, "now": each.now} for each in self.files],
            "changed": list(self.changed),
            "weights": list(self.weights),
        }


def reproduce(
    package: Package, recipe: Recipe, lake: str, work: Path, *, start: Package | None, report: Report
) -> Reproduction:
    """Train a package's model again: the same recipe, rows, champion and seed.

    What has changed since is said, and does not keep it from being tried: a comment in the code changes its digest, and
    no weight.

    Args:
        work: An empty folder.
        start: The package that it was trained from; None where it began from scratch.
    Raises:
        ConfigurationError: The package is a pipeline, is of another recipe, or ``start`` is not what it started from.
        DatasetError: The lake has that version no more.
    """
    manifest, lineage = package.manifest, package.manifest.lineage
    if manifest.pipeline:
        raise ConfigurationError(f"{manifest.name} {manifest.version} is a pipeline: reproduce the models that it runs")
    if manifest.name != recipe.name:
        raise ConfigurationError(f"the package is of '{manifest.name}', the recipe is '{recipe.name}'")
    _check_start(package, start)
    record = find_record(lake, recipe.name, lineage.dataset)
    samples_version, labels_version = _versions(package, record)
    champion = lineage.champion or manifest.parent
    report("dataset", 0.0, f"reading version {samples_version} of the samples and {labels_version} of the labels")
    replay_version = lineage.replay_version
    if replay_version is None and record is not None:
        replay_version = record.replay_version
    dataset = read_dataset(
        recipe,
        lake,
        samples_version=samples_version,
        labels_version=labels_version,
        labels_until_ms=lineage.labels_until_ms,
        replay_version=replay_version,
        champion=champion,
    )
    options: dict[str, Any] = {} if lineage.processes is None else {"processes": lineage.processes}
    run = RunFile(
        run=f"reproduce-{lineage.run}",
        model=manifest.name,
        trigger="manual",
        reason="reproduced",
        logical_time=lineage.trained_at,
        lake=lake,
        seed=lineage.seed,
        fence=0,
        champion=champion,
        options=options,
        samples_version=samples_version,
        labels_version=labels_version,
    )
    found = known(recipe, dataset, champion=champion, seed=lineage.seed, processes=lineage.processes)
    exported = train(run, recipe, dataset, work, champion=start, version=manifest.version, known=found, report=report)
    factor = factor_of(package)
    if factor is not None and start is not None:
        report("update", 0.85, f"rounding what changed in steps of {factor:g} RMS, as it was released")
        exported = _rounded(exported, recipe, start, work, factor)
    if INT8 in manifest.variants:
        quantise_candidate(exported.candidate, work / INT8_FILE, recipe, dataset)
    report("compare", 0.95, "comparing the models")
    return Reproduction(
        files=tuple(_proofs(package, exported, work)),
        changed=tuple(differences(lineage, found, recipe, dataset=dataset.digest)),
        weights=tuple(_differing(package, exported)),
    )


def _rounded(exported: Exported, recipe: Recipe, start: Package, work: Path, factor: float) -> Exported:
    """The challenger with its update rounded as the package says; that the gate let it pass is not proved again.

    Raises:
        ConfigurationError: Nothing of what training gave could be rounded.
    """
    try:
        difference = difference_of(exported.candidate, start)
        candidate, _ = rounded_candidate(
            work / "rounded", recipe, exported.identity, exported.candidate, difference, factor=factor
        )
    except UpdateNotQuantisable as error:
        raise ConfigurationError(
            f"the package says that its update was rounded, and what training gives now cannot be: {error}"
        ) from error
    return replace(exported, candidate=candidate)


def _check_start(package: Package, start: Package | None) -> None:
    parent = package.manifest.parent
    if parent is not None and start is None:
        raise ConfigurationError(
            f"{package.manifest.name} {package.manifest.version} was trained from package {parent[:12]}; give its "
            "folder with --champion, or a server that has it"
        )
    if start is not None and start.digest != parent:
        began = f"package {parent[:12]}" if parent else "scratch"
        raise ConfigurationError(f"{start.folder} is package {start.digest[:12]}; the model was trained from {began}")


def _versions(package: Package, record: DatasetRecord | None) -> tuple[int, int]:
    """Versions of the lake's samples and labels: from the lineage, the lake's book, or the package's evaluation."""
    lineage = package.manifest.lineage
    if lineage.samples_version is not None and lineage.labels_version is not None:
        return lineage.samples_version, lineage.labels_version
    if record is not None:
        return record.samples_version, record.labels_version
    try:
        dataset: Mapping[str, Any] = json.loads(package.path(EVALUATION_FILE).read_text())["dataset"]
        return int(dataset["samples_version"]), int(dataset["labels_version"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{package.folder}: neither its lineage nor its {EVALUATION_FILE} says which version of the lake it was "
            "trained on"
        ) from error


def _proofs(package: Package, exported: Exported, work: Path) -> list[FileProof]:
    files, candidate = package.manifest.files, exported.candidate
    form = package.manifest.variants[FULL_PRECISION]
    names = [form.model, *form.data, *([STATE_FILE] if STATE_FILE in files else [])]
    made = {name: entry.sha256 for name, entry in candidate.manifest.files.items()}
    if INT8 in package.manifest.variants:
        names.append(package.manifest.variants[INT8].model)
        made[INT8_FILE] = file_digest(work / INT8_FILE)
        made[TENSORS_FILE] = digest_of(tensors_with_int8(candidate, work / INT8_FILE))
    if TENSORS_FILE in files:
        names.append(TENSORS_FILE)
    return [FileProof(name, files[name].sha256, made.get(name, "")) for name in names]


def _differing(package: Package, exported: Exported) -> list[str]:
    ours, theirs = (each.path(each.manifest.variants[FULL_PRECISION].model) for each in (exported.candidate, package))
    return differing_weights(ours, theirs)
