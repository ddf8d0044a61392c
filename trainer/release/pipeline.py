"""A pipeline package from packages that there are: what they say about their tensors, it says about its own."""

from __future__ import annotations

import datetime as dt
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import ManifestError, PackageError
from edge_agent.contract.manifest import (
    CARD_FILE,
    EVALUATION_FILE,
    GOLDEN_FILE,
    REFERENCE_FILE,
    Batching,
    FileEntry,
    Lineage,
    Manifest,
    PipelineStep,
    digest_of,
)
from edge_agent.contract.profile import Feature, FeatureCounts, ReferenceProfile, encode_profile
from edge_agent.contract.quantities import Name
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.runtime.package import Golden, Package, encode_golden
from edge_agent.runtime.package_writer import write_package
from edge_agent.runtime.pipeline import PipelineBackend
from edge_agent.runtime.slots import Slots, load
from trainer.errors import RecipeError
from trainer.release.package import lock_digest

_GOLDEN_ROWS = 16


class StepTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[steps]]``.

    Args:
        package: Folder of the model's package, relative to the file; any version that fits may serve later.
        pinned: Whether only this very version may.
        inputs: For each input of the model the name of the tensor that feeds it; left out, the input's own name.
        outputs: For each output the name that it gets; left out, the output's own name.
    """

    package: str
    pinned: bool = False
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}


class PipelineFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pipeline as a TOML file declares it.

    Args:
        outputs: Names of the tensors that it answers with; left out, the outputs of the last step.
        batching: How devices batch requests of the pipeline as a whole.
        max_run_s: Seconds for all steps together.
    """

    name: Name
    version: str
    steps: tuple[StepTable, ...]
    outputs: tuple[str, ...] = ()
    sampling: SamplingPolicy = SamplingPolicy()
    batching: Batching | None = None
    max_run_s: float = 30.0


def read_pipeline_file(path: Path) -> PipelineFile:
    """The pipeline that a file declares.

    Raises:
        RecipeError: It cannot be read, is no TOML, or has a key or value that does not belong.
    """
    try:
        declared = msgspec.convert(tomllib.loads(path.read_text()), PipelineFile)
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from error
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    if not declared.steps:
        raise RecipeError(f"{path}: a pipeline needs at least one [[steps]]")
    return declared


def write_pipeline(folder: Path, declared: PipelineFile, packages: Path) -> Package:
    """Write the package of a pipeline; its golden samples are what the steps answer here and now.

    Args:
        folder: Where the package shall lie; must not exist, or be empty.
        packages: What the steps' folders are relative to.
    Raises:
        PackageError: A step's package is wrong, or (ManifestError, ModelLoadFailed) the steps do not fit together.
    """
    steps = [Package.open(packages / step.package, verify=True) for step in declared.steps]
    tensors = _Tensors(declared, steps)
    golden_inputs = tensors.golden_inputs()
    lines = [f"# {declared.name} {declared.version}", "", "A pipeline, made with:", ""]
    lines += [f"1. {each.manifest.name} {each.manifest.version}, package {each.digest}" for each in steps]
    card = "\n".join(lines)

    evaluated = EVALUATION_FILE in tensors.task_package.manifest.files
    files: dict[str, bytes | Path] = {
        REFERENCE_FILE: encode_profile(tensors.profile()),
        GOLDEN_FILE: encode_golden(Golden(golden_inputs, _answers(declared, steps, tensors, golden_inputs))),
        EVALUATION_FILE: tensors.task_package.path(EVALUATION_FILE) if evaluated else b"{}\n",
        CARD_FILE: card.encode() + b"\n",
    }
    return write_package(folder, files=files, manifest=lambda entries: _manifest(declared, steps, tensors, entries))


class _Tensors:
    """What each name of the pool stands for, and which package says so."""

    def __init__(self, declared: PipelineFile, steps: list[Package]) -> None:
        self.inputs: dict[str, tuple[Package, TensorSpec]] = {}
        given: dict[str, tuple[Package, TensorSpec]] = {}
        for table, package in zip(declared.steps, steps, strict=True):
            signature = package.manifest.signature
            for spec in signature.inputs:
                source = table.inputs.get(spec.name, spec.name)
                if source not in given:
                    self.inputs.setdefault(source, (package, spec))
            for spec in signature.outputs:
                given[table.outputs.get(spec.name, spec.name)] = (package, spec)
        last = steps[-1].manifest.signature.outputs
        wanted = declared.outputs or tuple(declared.steps[-1].outputs.get(spec.name, spec.name) for spec in last)
        for name in wanted:
            if name not in given:
                raise ManifestError(f"outputs: no step gives '{name}'; there are: {sorted(given)}")
        self.outputs = {name: given[name] for name in wanted}
        self.task_output, self.task_package = self._task()
        self.signature = Signature(
            inputs=tuple(msgspec.structs.replace(spec, name=name) for name, (_, spec) in self.inputs.items()),
            outputs=tuple(msgspec.structs.replace(spec, name=name) for name, (_, spec) in self.outputs.items()),
        )

    def _task(self) -> tuple[str, Package]:
        """The last output that is the task of the model that gives it."""
        for name, (package, spec) in reversed(self.outputs.items()):
            if package.manifest.task.output == spec.name:
                return name, package
        raise ManifestError(f"outputs: none of {list(self.outputs)} is what a step's own task is about")

    def golden_inputs(self) -> dict[str, NDArray[Any]]:
        found = {name: package.golden().inputs[spec.name] for name, (package, spec) in self.inputs.items()}
        rows = min(_GOLDEN_ROWS, *(len(array) for array in found.values()))
        return {name: array[:rows] for name, array in found.items()}

    def profile(self) -> ReferenceProfile:
        """The steps' reference data, as far as they are about what goes in and comes out here."""
        features: list[Feature] = []
        counts: dict[str, FeatureCounts] = {}
        for side, tensors in (("input", self.inputs), ("output", self.outputs)):
            for name, (package, spec) in tensors.items():
                profile = package.reference()
                for feature in profile.features:
                    if feature.side == side and feature.tensor == spec.name:
                        title = feature.name if feature.name not in counts else f"{name}.{feature.name}"
                        features.append(msgspec.structs.replace(feature, name=title, tensor=name))
                        counts[title] = profile.counts[feature.name]
        task = self.task_package.reference()
        return msgspec.structs.replace(task, features=tuple(features), counts=counts, devices={})


def _manifest(
    declared: PipelineFile, steps: list[Package], tensors: _Tensors, entries: Mapping[str, FileEntry]
) -> Manifest:
    task = tensors.task_package.manifest
    return Manifest(
        name=declared.name,
        version=declared.version,
        lineage=Lineage(
            dataset=task.lineage.dataset,
            # By which a device knows whether its steps are those that gave the golden outputs.
            code_sha256=digest_of("\n".join(each.digest for each in steps).encode()),
            lock_sha256=lock_digest(),
            seed=task.lineage.seed,
            run=f"pipeline-{declared.name}-{declared.version}",
            trained_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        ),
        signature=tensors.signature,
        task=msgspec.structs.replace(task.task, output=tensors.task_output),
        slices=task.slices,
        variants={},
        files=dict(entries),
        sampling=declared.sampling,
        batching=declared.batching,
        max_run_s=declared.max_run_s,
        pipeline=tuple(
            PipelineStep(
                model=package.manifest.name,
                version=package.manifest.version if table.pinned else None,
                inputs=table.inputs,
                outputs=table.outputs,
            )
            for table, package in zip(declared.steps, steps, strict=True)
        ),
    )


def _answers(
    declared: PipelineFile, steps: list[Package], tensors: _Tensors, inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """What the steps say, on the devices' own runtime, put together as devices put them together."""
    slots = Slots()
    try:
        for package in steps:
            known = [each.digest for each in slots.models() if each.name == package.manifest.name]
            if not known:
                slots.install(load(package))
            elif known != [package.digest]:
                raise PackageError(f"{package.folder}: two versions of '{package.manifest.name}' in one pipeline")
        draft = Package(folder=Path(), manifest=_manifest(declared, steps, tensors, {}), digest="0" * 64)
        outputs = PipelineBackend(draft, slots).infer(InputCheck(tensors.signature)(inputs).inputs)
        return {name: np.array(array) for name, array in outputs.items()}
    finally:
        slots.close()
