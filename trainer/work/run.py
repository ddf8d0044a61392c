"""One training run as a process of its own: ``python -m trainer.work.run RUNFILE --recipes DIR --work DIR``.

It reads a run file and writes ``WORK/result.json`` and, where the challenger is to be released, ``WORK/package``. It
says how far it is by JSON lines ``{"stage", "fraction", "message", "metrics"}`` on standard output; all else goes to
standard error. What lies in the folder ``--checkpoints`` outlives it: another attempt at the run goes on from there. It
signs and publishes nothing: keys never come near a recipe's code.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click
import msgspec

from edge_agent.contract.errors import ConfigurationError, ShoalError
from edge_agent.contract.names import check_version
from edge_agent.contract.runs import RunFile, RunResult, RunState
from edge_agent.durable import write_durably
from edge_agent.ending import run_and_end
from edge_agent.runtime.package import Package
from trainer.errors import DatasetError
from trainer.recipe import Recipe
from trainer.work.reporting import Report

if TYPE_CHECKING:
    from trainer.data.dataset import Dataset

RESULT_FILE = "result.json"
TRACEBACK_FILE = "traceback.txt"
PACKAGE_FOLDER = "package"
_NONE: Mapping[str, float] = {}


def execute(
    run: RunFile,
    recipe: Recipe,
    work: Path,
    *,
    champion: Package | None,
    version: str,
    report: Report,
    checkpoints: Path | None = None,
) -> RunResult:
    """Train a challenger, judge it, and package it where it is better.

    Args:
        work: An empty folder; ``package`` appears in it where the result is ``released``.
        champion: The package that ``run.champion`` names; None for the first model.
        version: What the new package is called.
        report: Told how far it is.
        checkpoints: A folder that outlives a killed attempt; the next one goes on from what lies there.
    Returns:
        ``released`` (that is: may be), ``refused`` or ``unchanged``.
    Raises:
        ShoalError: The dataset, the recipe, the run file or the exported model is wrong.
    """
    check_version(version)
    report("dataset", 0.0, "loading the libraries")
    from trainer.data.dataset import read_dataset

    dataset = read_dataset(
        recipe,
        run.lake,
        samples_version=run.samples_version,
        labels_version=run.labels_version,
        labels_until_ms=None if run.labels_until is None else _moment_ms(run.labels_until),
        champion=run.champion,
    )
    known_then = f", as known at {run.labels_until}" if run.labels_until else ""
    field = int(dataset.field.sum())
    report("dataset", 0.15, f"{len(dataset.rows)} labelled rows, {field} from the field{known_then}")
    if dataset.set_aside:
        aside = f"{dataset.set_aside} samples break the signature and are set aside; the first: {dataset.complaint}"
        report("dataset", 0.15, aside)
    if champion is not None and (reason := _nothing_new(recipe, dataset)):
        return _unchanged(run, dataset, reason, None)
    from trainer.gates.evaluate import too_few
    from trainer.release.lineage import known
    from trainer.training.plan import Compute
    from trainer.work.challenger import judge, train

    processes = Compute.of(recipe, os.environ, run.options).processes
    inputs = known(recipe, dataset, champion=run.champion, seed=run.seed, processes=processes)
    if reason := _tried(run, inputs.inputs):
        return _unchanged(run, dataset, reason, inputs.inputs)
    if champion is not None and (reason := too_few(recipe, dataset)):
        return _undecided(run, dataset, reason, inputs.inputs)
    exported = train(
        run,
        recipe,
        dataset,
        work,
        champion=champion,
        version=version,
        known=inputs,
        report=report,
        checkpoints=checkpoints,
    )
    result = judge(run, recipe, dataset, work / PACKAGE_FOLDER, exported, champion=champion, report=report)
    _record(run, dataset, result, report)
    return result


def _moment_ms(text: str) -> int:
    """A moment of the run file, Unix milliseconds."""
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(f"run file: labels_until {text!r} is no moment like 2026-03-01T03:00:00Z") from error
    return round((found if found.tzinfo else found.replace(tzinfo=dt.UTC)).timestamp() * 1000)


def _record(run: RunFile, dataset: Dataset, result: RunResult, report: Report) -> None:
    """Write into the lake's book what was trained on what; a lake that cannot be written to does not undo a verdict."""
    from trainer.data.records import record_dataset

    try:
        record_dataset(
            run.lake,
            run.model,
            dataset,
            now=dt.datetime.now(dt.UTC),
            run=run.run,
            champion=run.champion,
            package=result.package or "",
            version=result.version or "",
        )
    except DatasetError as error:
        report("record", 0.98, f"not in the lake's book of datasets, so upkeep will not keep this version: {error}")


def _unchanged(run: RunFile, dataset: Dataset, reason: str, inputs: str | None) -> RunResult:
    return RunResult(
        fence=run.fence,
        state=RunState.UNCHANGED,
        reasons=(reason,),
        evaluation={"dataset": dataset.summary()},
        inputs=inputs,
    )


def _undecided(run: RunFile, dataset: Dataset, reason: str, inputs: str | None) -> RunResult:
    """No verdict could come of training: it is not begun."""
    return RunResult(
        fence=run.fence,
        state=RunState.REFUSED,
        reasons=(f"undecided, and nothing was trained: {reason}",),
        evaluation={"outcome": "undecided", "dataset": dataset.summary()},
        inputs=inputs,
    )


def _tried(run: RunFile, inputs: str | None) -> str:
    """Why training again would come to what an earlier run came to; empty where it might not."""
    before = [name for name, digest in run.tried.items() if digest == inputs]
    if not before:
        return ""
    return (
        f"nothing has changed since run {before[-1]}: the same rows and labels, recipe, champion, seed, libraries and "
        f"trainer (inputs {str(inputs)[:12]}) would give the same model"
    )


def _nothing_new(recipe: Recipe, dataset: Dataset) -> str:
    have, need = int(dataset.current.sum()), recipe.file.training.field_rows
    if have >= need:
        return ""
    lost = dataset.unmatched
    unseen = (
        f"; {lost} labels more are of requests that no device sent home ([sampling] samples_per_minute)" if lost else ""
    )
    return f"nothing to learn from: {have} labelled rows of today's world, the recipe asks for at least {need}{unseen}"


def next_version(champion_version: str | None) -> str:
    """The version after the champion's: versions that this trainer gives are decimal numbers.

    Raises:
        ConfigurationError: The champion's is none.
    """
    if champion_version is None:
        return "1"
    if not champion_version.isdecimal():
        raise ConfigurationError(
            f"the champion's version {champion_version!r} is no decimal number; give the new one with --version"
        )
    return str(int(champion_version) + 1)


@click.command()
@click.argument("runfile", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--recipes", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--work", required=True, type=click.Path(file_okay=False, path_type=Path), help="an empty folder")
@click.option("--champion", type=click.Path(exists=True, file_okay=False, path_type=Path), help="package folder")
@click.option("--version", help="of the new package; one after the champion's unless given")
@click.option("--checkpoints", type=click.Path(file_okay=False, path_type=Path), help="kept from attempt to attempt")
def main(
    *, runfile: Path, recipes: Path, work: Path, champion: Path | None, version: str | None, checkpoints: Path | None
) -> None:
    """Execute RUNFILE; exit status 0 whatever the verdict, and another where no verdict was reached."""
    lines = _claim_stdout()

    def report(stage: str, fraction: float, message: str, metrics: Mapping[str, float] = _NONE, /) -> None:
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        line = {"stage": stage, "fraction": round(fraction, 3), "message": message, "metrics": finite}
        lines.write(msgspec.json.encode(line).decode() + "\n")
        lines.flush()

    try:
        run = msgspec.json.decode(runfile.read_bytes(), type=RunFile)
        recipe = Recipe.load(recipes / run.model)
        beaten = _champion(run, champion)
        work.mkdir(parents=True, exist_ok=True)
        wanted = version or next_version(run.champion_version)
        result = execute(run, recipe, work, champion=beaten, version=wanted, report=report, checkpoints=checkpoints)
    except (ShoalError, msgspec.DecodeError) as error:
        if error.__cause__ is not None and work.is_dir():
            (work / TRACEBACK_FILE).write_text("".join(traceback.format_exception(error)))
        click.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, ShoalError) else 2)
    write_durably(work / RESULT_FILE, msgspec.json.encode(result))
    report(result.state.value, 1.0, "; ".join(result.reasons))


def _champion(run: RunFile, folder: Path | None) -> Package | None:
    if run.champion is None:
        return None
    if folder is None:
        raise ConfigurationError(f"run {run.run} has a champion, {run.champion[:12]}: give its folder with --champion")
    package = Package.open(folder, verify=True)
    if package.digest != run.champion:
        raise ConfigurationError(
            f"{folder} is package {package.digest[:12]}, the run's champion is {run.champion[:12]}"
        )
    return package


def _claim_stdout() -> TextIO:
    """Standard output for progress alone: whatever a library prints goes to standard error from now on."""
    sys.stdout.flush()
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lines


if __name__ == "__main__":
    run_and_end(main)
