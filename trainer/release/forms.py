"""The forms in which a model is released: full precision, and int8 where that is faster and as good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import ShoalError
from edge_agent.contract.manifest import FULL_PRECISION, GOLDEN_FILE, INT8, TENSORS_FILE, golden_file
from edge_agent.contract.stored_tensors import encode_stored_tensors
from edge_agent.runtime.backend import InferenceBackend
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Golden, Package, encode_golden
from trainer.data.dataset import Dataset
from trainer.data.rows import Rows
from trainer.errors import ParityFailed, QuantisationFailed
from trainer.gates.comparison import Comparison, predict
from trainer.gates.evaluate import compare_forms
from trainer.gates.footprint import Footprint, Speedup, measure
from trainer.gates.parity import check_probabilities
from trainer.gates.parity_matrix import FormParity, ParityMatrix
from trainer.recipe import Recipe
from trainer.release.export import MODEL_FILE
from trainer.release.package import Identity, write_candidate
from trainer.release.quantise import calibration_rows, quantise
from trainer.release.stored import joined, layout_of, stored_tensors
from trainer.release.update_search import Update

INT8_FILE = f"{INT8}/{MODEL_FILE}"
_GOLDEN_ROWS = 16


@dataclass(frozen=True)
class Int8:
    """What became of the int8 form.

    Args:
        kept: Whether it is released beside full precision.
        reason: In words, with the figures.
        comparison: Against full precision on the held-out rows; None where it came to none.
        speedup, batch_speedup: How many times faster it is for a single row, and for a batch as the model prefers it.
        faults: Why it was measured and not kept, one by one.
    """

    kept: bool
    reason: str
    comparison: Comparison | None = None
    speedup: Speedup | None = None
    batch_speedup: Speedup | None = None
    faults: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """What ``evaluation.json`` says of it."""
        found: dict[str, Any] = {"kept": self.kept, "reason": self.reason}
        if self.comparison is not None:
            found["comparison"] = self.comparison.as_json()
        if self.speedup is not None and self.batch_speedup is not None:
            found |= {"speedup": round(self.speedup.times, 3), "batch_speedup": round(self.batch_speedup.times, 3)}
            found["speedup_interval"] = [round(self.speedup.low, 3), round(self.speedup.high, 3)]
        return found


@dataclass(frozen=True)
class Forms:
    """A challenger in the forms in which it would be released.

    Args:
        package: The models and their golden samples; not yet what is said about them.
        parity: By form, beside the trained network; of an int8 form also where it was not kept.
        footprints: By form.
        exact: Parity of the weights before the update was rounded.
        update: How the weights travel.
    """

    package: Package
    int8: Int8
    parity: dict[str, FormParity]
    footprints: dict[str, Footprint]
    exact: FormParity
    update: Update

    @property
    def served(self) -> str:
        """The form that a device like this machine serves."""
        return INT8 if self.int8.kept else FULL_PRECISION

    def parity_json(self) -> dict[str, Any]:
        """What ``parity.json`` says."""
        return {"forms": {name: found.as_json() for name, found in self.parity.items()}, "exact": self.exact.as_json()}

    def footprints_json(self) -> dict[str, Any]:
        """What ``evaluation.json`` says of time and memory."""
        return {
            name: {
                "row_ms": _ms(found.row_us),
                "p99_ms": _ms(found.p99_us),
                "batch_rows": found.batch_rows,
                "batch_ms": _ms(found.batch_us),
                "memory_mib": round(found.memory_bytes / (1 << 20), 2),
            }
            for name, found in self.footprints.items()
        }


def make_forms(
    work: Path,
    recipe: Recipe,
    identity: Identity,
    candidate: Package,
    backend: InferenceBackend,
    *,
    dataset: Dataset,
    matrix: ParityMatrix,
    full: FormParity,
    exact: FormParity,
    update: Update,
) -> Forms:
    """Add golden samples to the candidate and, where it is worth it, an int8 form; measure what they take.

    Args:
        work: A folder for packages on the way.
        candidate: The model in full precision, on ``backend``; ``full``: how it stood in the parity matrix.
        exact: How it stood there before the update was rounded; ``update``: how that was done.
    Raises:
        MeasurementFailed: The candidate could not be measured.
    """
    rows = golden_inputs(dataset)
    files: dict[str, bytes | Path] = {name: candidate.path(name) for name in candidate.manifest.files}
    files[GOLDEN_FILE] = encode_golden(Golden(dict(rows.sent), backend.infer(rows.inputs)))
    plain = write_candidate(work / "plain", recipe, identity, files)

    def without(reason: str) -> Forms:
        return Forms(plain, Int8(False, reason), {FULL_PRECISION: full}, measure(plain), exact, update)

    if recipe.file.gates.int8 == "off":
        return without("gates.int8 is off")
    try:
        model = quantise_candidate(candidate, work / INT8 / MODEL_FILE, recipe, dataset)
        files |= {INT8_FILE: model, TENSORS_FILE: tensors_with_int8(candidate, model)}
        both = write_candidate(work / "both", recipe, identity, files)
        small = OnnxBackend(both, variant=INT8)
        files[golden_file(INT8)] = encode_golden(Golden(dict(rows.sent), small.infer(rows.inputs)))
        both = write_candidate(work / "forms", recipe, identity, files)
        parity = {FULL_PRECISION: full, INT8: matrix.hold(small, exact=False)}
    except QuantisationFailed as error:
        return without(str(error))
    except ShoalError as error:
        # Whatever is wrong with it, the model in full precision is not.
        return without(f"it does not run: {error}")
    footprints = measure(both)
    verdict = _judge(recipe, dataset, small, backend, footprints, seed=identity.seed)
    small.close()
    return Forms(both if verdict.kept else plain, verdict, parity, footprints, exact, update)


def golden_inputs(dataset: Dataset) -> Rows:
    """A few held-out rows, each class in turn: what a device tests a model on before it serves."""
    rows = dataset.rows.take(dataset.holdout)
    rank = np.zeros(len(rows), dtype=np.int64)
    for target in set(rows.targets.tolist()):
        same = np.flatnonzero(rows.targets == target)
        rank[same] = np.arange(len(same))
    return rows.take(np.lexsort((rows.targets, rank))[:_GOLDEN_ROWS])


def quantise_candidate(candidate: Package, target: Path, recipe: Recipe, dataset: Dataset) -> Path:
    """The int8 form of a package's model; equal packages and datasets give equal bytes.

    Raises:
        QuantisationFailed: See :func:`trainer.release.quantise.quantise`.
    """
    rows = dataset.rows.take(dataset.train)
    model = candidate.path(candidate.manifest.variants[FULL_PRECISION].model)
    return quantise(model, target, recipe.signature, rows.take(calibration_rows(rows.targets)).inputs)


def tensors_with_int8(candidate: Package, model: Path) -> bytes:
    """``tensors.json`` of a candidate with its int8 form beside it."""
    return encode_stored_tensors(joined(layout_of(candidate), stored_tensors(model, prefix=f"{INT8}/")))


def parity_slices(recipe: Recipe, dataset: Dataset, mask: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """The recipe's slices and the replay set, as parts of the rows of ``mask``: by name, bool[rows of the mask]."""
    labels = np.array(recipe.file.labels, dtype=object)
    keys = {"device": dataset.rows.devices[mask], "class": labels[dataset.rows.targets[mask]]}
    slices = {f"{name} {key}": keys[name] == key for name in recipe.file.slices for key in sorted(set(keys[name]))}
    return slices | {f"replay {name}": found[mask] for name, found in dataset.replay.items()}


def _judge(
    recipe: Recipe,
    dataset: Dataset,
    small: InferenceBackend,
    full: InferenceBackend,
    footprints: Mapping[str, Footprint],
    *,
    seed: int,
) -> Int8:
    """Whether the int8 form is released, and why."""
    a, b = footprints[INT8], footprints[FULL_PRECISION]
    speedup, batch_speedup = a.row_speedup, a.batch_speedup
    comparison, faults = compare_forms(recipe, dataset, small, full, seed=seed)
    try:
        heldout = predict(small, dataset.rows.take(dataset.holdout).inputs)
        check_probabilities(recipe.task.output, heldout[recipe.task.output])
    except ParityFailed as error:
        faults.append(str(error))
    figures = (
        f"{speedup.times:.2f} times as fast for a single row ({_ms(a.row_us):g} against {_ms(b.row_us):g} ms; interval "
        f"of the ratio {speedup.low:.2f} to {speedup.high:.2f}) and {batch_speedup.times:.2f} times for {a.batch_rows} "
        "rows"
    )
    wanted = recipe.file.gates.int8_speedup
    if speedup.times < wanted or batch_speedup.times < 1:
        faults.append(f"it is {figures}; it must be {wanted:g} times for a single row, and no slower for more")
    elif speedup.low <= 1:
        faults.append(f"it is {figures}: on a machine that busy nobody can tell that it is faster at all")
    if faults:
        return Int8(False, "; ".join(faults), comparison, speedup, batch_speedup, faults=tuple(faults))
    lost = -100 * (comparison.difference or 0.0)
    accuracy = "loses nothing" if lost <= 0 else f"loses {lost:.1f} points"
    reason = f"it is {figures}, and {accuracy} on {comparison.rows} held-out rows"
    return Int8(True, reason, comparison, speedup, batch_speedup)


def _ms(us: float) -> float:
    return float(f"{us / 1000:.3g}")
