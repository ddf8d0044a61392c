"""What a package says about its model: ``evaluation.json``, ``parity.json`` and the card with its plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edge_agent.contract.manifest import CARD_FILE, EVALUATION_FILE, PARITY_FILE, REFERENCE_FILE
from edge_agent.contract.profile import encode_profile
from edge_agent.runtime.backend import InferenceBackend
from trainer.data.dataset import Dataset
from trainer.gates.comparison import Comparison, predict
from trainer.gates.evaluate import Evaluation
from trainer.gates.statistics import calibration_error
from trainer.recipe import Recipe
from trainer.release import plots
from trainer.release.forms import Forms, Int8
from trainer.release.package import Identity
from trainer.release.reference import Reference
from trainer.release.update_search import Update

_FOLDER = "card"
_SLICES, _RELIABILITY, _CONFUSION = (f"{_FOLDER}/{name}.svg" for name in ("slices", "reliability", "confusion"))


def reports(
    recipe: Recipe,
    identity: Identity,
    *,
    dataset: Dataset,
    evaluation: Evaluation,
    reference: Reference,
    forms: Forms,
    backend: InferenceBackend,
) -> dict[str, bytes]:
    """All that is said of a challenger, by the package's file.

    Args:
        backend: The challenger in full precision.
    """
    judged = evaluation_json(recipe, dataset, evaluation, reference, forms)
    heldout = dataset.rows.take(dataset.holdout)
    probabilities = predict(backend, heldout.inputs)[recipe.task.output]
    answers, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right = np.asarray(answers == heldout.targets, dtype=bool)
    judged["calibration_error"] = round(calibration_error(sure, right), 4)
    return {
        REFERENCE_FILE: encode_profile(reference.profile),
        EVALUATION_FILE: _json(judged),
        PARITY_FILE: _json(forms.parity_json()),
        CARD_FILE: _card(recipe, identity, judged, forms).encode(),
        _SLICES: plots.slices(dict(_parts(evaluation))),
        _RELIABILITY: plots.reliability(sure, right),
        _CONFUSION: plots.confusion(heldout.targets, answers, recipe.file.labels),
    }


def evaluation_json(
    recipe: Recipe, dataset: Dataset, evaluation: Evaluation, reference: Reference, forms: Forms | None
) -> dict[str, Any]:
    """What ``evaluation.json`` says.

    Args:
        forms: None of a challenger that was refused before its forms were made.
    """
    gates = {name: getattr(recipe.file.gates, name) for name in recipe.file.gates.__struct_fields__}
    promised = reference.profile
    found = {
        **evaluation.as_json(),
        "accuracy": None if promised.accuracy is None else round(promised.accuracy, 4),
        "reference": {"source": reference.source, "rows": reference.rows, "devices": sorted(promised.devices)},
        "gates": gates,
        "dataset": dataset.summary(),
    }
    if forms is not None:
        found |= {
            "update": forms.update.as_json(),
            "int8": forms.int8.as_json(),
            "footprint": forms.footprints_json(),
        }
    return found


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


def _parts(evaluation: Evaluation) -> Iterator[tuple[str, Comparison]]:
    """Every comparison by what it is called on the card."""
    yield "today", evaluation.current
    if evaluation.base is not None:
        yield "imported", evaluation.base
    for name, part in evaluation.replay.items():
        yield f"replay {name}", part
    for name, parts in evaluation.slices.items():
        for value, part in parts.items():
            yield f"{name} {value}", part


def _card(recipe: Recipe, identity: Identity, judged: Mapping[str, Any], forms: Forms) -> str:
    """The model card (Mitchell et al. 2019): the recipe's own words, then what this version was measured to do."""
    readme = recipe.folder / "README.md"
    words = readme.read_text() if readme.is_file() else f"# {recipe.file.title}\n"
    lines = [
        words.rstrip(),
        "",
        f"## Version {identity.version}",
        "",
        _origin(identity, judged["dataset"]),
        "",
        *(f"- {reason}" for reason in judged["reasons"]),
        "",
        "### How good it is",
        "",
        f"![Accuracy by slice]({_SLICES})",
        "",
        *_table(judged),
        "",
        f"Its confidence is off by {judged['calibration_error']:.3f} on average (expected calibration error).",
        "",
        f"![Calibration]({_RELIABILITY}) ![Confusion]({_CONFUSION})",
        "",
        "### What it takes",
        "",
        *_footprints(judged["footprint"]),
        "",
        *_int8(forms.int8),
        "",
        "### How it travels",
        "",
        *_update(forms.update),
        "",
        f"### Parity with the trained network ([{PARITY_FILE}]({PARITY_FILE}))",
        "",
        *_parity(forms),
        "",
    ]
    return "\n".join(lines)


def _int8(int8: Int8) -> list[str]:
    if len(int8.faults) > 1:
        return ["int8: not kept:", "", *(f"- {fault}" for fault in int8.faults)]
    return [f"int8: {'kept: ' if int8.kept else 'not kept: '}{int8.reason}."]


def _update(update: Update) -> Iterator[str]:
    yield f"Weights: {update.reason}."
    if update.rounded is None or update.nearness is None or update.parent is None:
        return
    exact, released = update.nearness.calibration
    distances = ", ".join(f"{name} {value:.2g}" for name, value in update.nearness.distances.items())
    yield ""
    yield (
        f"A device that has package {update.parent[:12]} needs the steps alone. These very weights are judged here; "
        f"the exact ones are not kept. Beside them, {update.nearness.agreement:.1%} of the rows get the same class; "
        f"mean distance of the answers: {distances}; calibration error {exact:.3f}, released {released:.3f}."
    )


def _origin(identity: Identity, dataset: Mapping[str, Any]) -> str:
    start = f"package {identity.parent[:12]}" if identity.parent else "scratch"
    text = (
        f"Trained from {start} on {dataset['train']} rows of dataset {dataset['digest'][:12]} ({dataset['imported']} "
        f"imported and {dataset['field']} field rows in all), seed {identity.seed}, run {identity.run}."
    )
    if identity.known.inputs:
        text += f" All that it follows from has the digest {identity.known.inputs[:12]}: `shoal reproduce` proves it."
    return text


def _table(judged: Mapping[str, Any]) -> Iterator[str]:
    yield "| slice | rows | champion | this model | interval |"
    yield "|---|---|---|---|---|"
    rows = [("today", judged["current"])]
    if judged["base"]:
        rows.append(("imported", judged["base"]))
    rows += [(f"replay {name}", part) for name, part in judged["replay"].items()]
    rows += [(f"{name} {value}", part) for name, parts in judged["slices"].items() for value, part in parts.items()]
    for name, part in rows:
        champion = f"{part['champion']:.1%}" if "champion" in part else ""
        low, high = part.get("challenger_interval", (part["challenger"], part["challenger"]))
        yield f"| {name} | {part['rows']} | {champion} | {part['challenger']:.1%} | {low:.1%} to {high:.1%} |"


def _footprints(footprints: Mapping[str, Any]) -> Iterator[str]:
    yield "| form | a row, ms | 99 % of rows under, ms | a batch, ms | memory, MiB |"
    yield "|---|---|---|---|---|"
    for name, each in footprints.items():
        batch = f"{each['batch_ms']:g} ({each['batch_rows']} rows)"
        yield f"| {name} | {each['row_ms']:g} | {each['p99_ms']:g} | {batch} | {each['memory_mib']:g} |"


def _parity(forms: Forms) -> Iterator[str]:
    yield "| form | largest difference | same class | shapes tried |"
    yield "|---|---|---|---|"
    rounded = {"fp32, before its update was rounded": forms.exact} if forms.update.rounded is not None else {}
    for name, found in (rounded | forms.parity).items():
        everything = found.slices["all"]
        yield f"| {name} | {found.difference:.2g} | {everything.agreement:.1%} | {len(found.shapes)} |"
