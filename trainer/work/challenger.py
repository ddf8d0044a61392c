"""A challenger from training to package: fitted, exported, held against the trained network, judged, measured."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from edge_agent.contract.manifest import FULL_PRECISION
from edge_agent.contract.runs import RunFile, RunResult, RunState
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package
from trainer.data.dataset import Dataset
from trainer.gates.comparison import predict
from trainer.gates.evaluate import Evaluation, evaluate
from trainer.gates.footprint import preferred_rows
from trainer.gates.limits import broken_limits
from trainer.gates.parity import check_probabilities
from trainer.gates.parity_matrix import FormParity, ParityMatrix
from trainer.recipe import Recipe
from trainer.release.card import evaluation_json, reports
from trainer.release.export import export, state_from
from trainer.release.forms import Forms, make_forms, parity_slices
from trainer.release.package import Identity, Known, write_candidate, write_release
from trainer.release.reference import build_reference
from trainer.release.update_search import Released, Update, find_update
from trainer.training.fit import Fitted, fit
from trainer.training.plan import Compute
from trainer.training.rehearsal import rehearse
from trainer.work.reporting import Report

_CANDIDATE_FOLDER, _EXPORT_FOLDER, _FORMS_FOLDER, _UPDATE_FOLDER = "candidate", "export", "forms", "update"
# A batch that devices prefer is tried too; the parity gate needs none of thousands of rows.
_MOST_BATCH_ROWS = 256


@dataclass(frozen=True)
class Exported:
    """A challenger as a package of its model alone.

    Args:
        backend: It, on the runtime that devices use.
    """

    fitted: Fitted
    identity: Identity
    candidate: Package
    backend: OnnxBackend


def train(
    run: RunFile,
    recipe: Recipe,
    dataset: Dataset,
    work: Path,
    *,
    champion: Package | None,
    version: str,
    known: Known,
    report: Report,
    checkpoints: Path | None = None,
) -> Exported:
    """Train the challenger, from the champion's weights where they fit, and export it.

    Args:
        known: What the lineage says besides, so that it can be trained again.
        checkpoints: Where a training that was interrupted goes on from; None keeps none.
    Raises:
        ShoalError: The recipe or the exported model is wrong.
    """
    settings = recipe.file.training
    blank = recipe.network(learning_rate=settings.learning_rate, epochs=1)
    few = dataset.rows.take(dataset.train.nonzero()[0][:8])
    rehearse(recipe, blank, dict(few.inputs))
    start = None
    if champion is not None:
        start = state_from(champion, blank)
        if start is None:
            report("fit", 0.2, "the champion's weights do not fit the recipe's network any more: training from scratch")
    fitted = fit(
        recipe,
        dataset,
        seed=run.seed,
        start=start,
        progress=lambda share, message, metrics: report("fit", 0.2 + 0.5 * share, message, metrics),
        checkpoints=checkpoints,
        compute=Compute.of(recipe, os.environ, run.options),
        run=run.run,
    )
    report("export", 0.75, "exporting to ONNX")
    files = export(fitted.network, recipe.signature, work / _EXPORT_FOLDER)
    identity = Identity(
        version=version,
        parent=run.champion if fitted.warm else None,
        dataset=dataset.digest,
        seed=run.seed,
        run=run.run,
        known=known,
    )
    candidate = write_candidate(work / _CANDIDATE_FOLDER, recipe, identity, files)
    return Exported(fitted, identity, candidate, OnnxBackend(candidate, threads=settings.threads))


def judge(
    run: RunFile,
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    exported: Exported,
    *,
    champion: Package | None,
    report: Report,
) -> RunResult:
    """Hold the challenger against the trained network, against the champion and against the recipe's limits.

    Where it may be released, its weights are rounded beside the champion's; from there on all is said of these.

    Args:
        folder: Where the package shall lie.
    Returns:
        ``released`` or ``refused``.
    Raises:
        ParityFailed: It does not answer as the trained network does.
    """
    matrix, exact = _parity(recipe, dataset, exported)
    report("parity", 0.8, f"the exported model differs by at most {exact.difference:.1g} from the trained one")
    rival = None if champion is None else OnnxBackend(champion, threads=recipe.file.training.threads)
    evaluation = evaluate(recipe, dataset, exported.backend, rival, seed=run.seed)
    forms = None
    if evaluation.released:
        report("update", 0.82, "how coarsely what changed can be rounded")
        released = find_update(
            folder.parent / _UPDATE_FOLDER,
            recipe,
            dataset,
            exported.identity,
            Released(Update("exact"), exported.candidate, exported.backend, evaluation),
            parent=champion if exported.identity.parent is not None else None,
            evaluate=lambda backend: evaluate(recipe, dataset, backend, rival, seed=run.seed),
        )
        report("update", 0.84, f"the update is {released.update.reason}")
        exported = replace(exported, candidate=released.candidate, backend=released.backend)
        evaluation = released.evaluation
        report("forms", 0.85, "measuring the model, and its int8 form")
        forms = make_forms(
            folder.parent / _FORMS_FOLDER,
            recipe,
            exported.identity,
            exported.candidate,
            exported.backend,
            dataset=dataset,
            matrix=matrix,
            full=exact if released.update.rounded is None else matrix.hold(exported.backend, exact=False),
            exact=exact,
            update=released.update,
        )
        report("forms", 0.9, f"int8 is {'kept' if forms.int8.kept else 'not kept'}: {forms.int8.reason}")
        evaluation = evaluation.refused(_broken(recipe, forms))
    return _conclude(run, recipe, dataset, folder, exported, evaluation, forms, report)


def _conclude(  # noqa: PLR0917 - the parts of one verdict
    run: RunFile,
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    exported: Exported,
    evaluation: Evaluation,
    forms: Forms | None,
    report: Report,
) -> RunResult:
    identity = exported.identity
    reference = build_reference(recipe, dataset, exported.backend)
    judged = evaluation_json(recipe, dataset, evaluation, reference, forms)
    result = RunResult(
        fence=run.fence,
        state=RunState.REFUSED,
        reasons=evaluation.reasons,
        evaluation=judged,
        inputs=identity.known.inputs,
    )
    if forms is None or not evaluation.released:
        return result
    report("package", 0.95, evaluation.reasons[0])
    said = reports(
        recipe,
        identity,
        dataset=dataset,
        evaluation=evaluation,
        reference=reference,
        forms=forms,
        backend=exported.backend,
    )
    package = write_release(folder, recipe, identity, forms.package, said)
    return RunResult(
        fence=run.fence,
        state=RunState.RELEASED,
        reasons=evaluation.reasons,
        package=package.digest,
        version=identity.version,
        evaluation=judged,
        inputs=identity.known.inputs,
    )


def _parity(recipe: Recipe, dataset: Dataset, exported: Exported) -> tuple[ParityMatrix, FormParity]:
    judges = dataset.holdout.copy()
    for mask in dataset.replay.values():
        judges |= mask
    unseen = dict(dataset.rows.take(judges).inputs)
    matrix = ParityMatrix(
        exported.fitted.network,
        recipe.signature,
        recipe.task.output,
        unseen,
        slices=parity_slices(recipe, dataset, judges),
        sizes=(min(preferred_rows(recipe.file.batching), _MOST_BATCH_ROWS),),
    )
    full = matrix.hold(exported.backend, exact=True)
    check_probabilities(recipe.task.output, predict(exported.backend, unseen)[recipe.task.output])
    return matrix, full


def _broken(recipe: Recipe, forms: Forms) -> list[str]:
    form = forms.served
    footprint = forms.footprints.get(form) or forms.footprints[FULL_PRECISION]
    return broken_limits(recipe.file.gates, forms.package.manifest, footprint, form=form)
