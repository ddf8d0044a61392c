"""One upkeep run as a process of its own: ``python -m trainer.data.upkeep JOBFILE --work DIR``.

JOBFILE is a run file of kind ``upkeep``; its options say what is to be done: ``task = "tend"`` with ``retain_days``,
``vacuum_days``, ``keep_packages``, ``dry_run``; or ``task = "import"`` with ``from``, ``query``, ``timeout_s``, ``map``
(columns by input), ``label``, ``group``, ``key``, ``skip_bad``: without ``from`` the recipe's base rows. It says how
far it is by JSON lines ``{"stage", "fraction", "message"}`` on standard output, all else on standard error, and writes
``DIR/result.json``. Both tasks may be done again at any time: what is done already is left alone.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TextIO

import click
import msgspec

from edge_agent.contract.errors import ConfigurationError, NetworkError, ShoalError, StorageFull
from edge_agent.contract.runs import RunFile, RunResult, RunState
from edge_agent.durable import write_durably
from edge_agent.ending import run_and_end
from trainer.data.import_table import Columns, ImportedTable, import_table
from trainer.data.lake import import_base
from trainer.data.sources import RowsFrom
from trainer.data.tending import Care, as_words, tend
from trainer.recipe import Recipe

RESULT_FILE = "result.json"
_MAY_PASS = (NetworkError, StorageFull)

Report = Callable[[str, float, str], None]


class TendOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a run that tends the lake; see :class:`trainer.data.tending.Care`."""

    task: Literal["tend"] = "tend"
    retain_days: float | None = None
    vacuum_days: float = 7.0
    keep_packages: int = 20
    dry_run: bool = False


class ImportOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a run that imports rows; see ``shoal trainer import``."""

    task: Literal["import"] = "import"
    source: str | None = msgspec.field(default=None, name="from")
    query: str = ""
    timeout_s: float = 300.0
    columns: dict[str, list[str] | str] = msgspec.field(default_factory=dict, name="map")
    label: str = "label"
    group: str | None = None
    key: str | None = None
    skip_bad: bool = False
    replace: bool = False


def execute(run: RunFile, recipes: Path | None, report: Report) -> RunResult:
    """Do what the run's options say.

    Args:
        recipes: Folder of recipes; an import needs that of its model.
    Raises:
        ShoalError: The options are wrong, or the lake or the source cannot be read or written.
    """
    now = dt.datetime.now(dt.UTC)
    options: TendOptions | ImportOptions
    try:
        if run.options.get("task") == "tend":
            options = msgspec.convert(run.options, TendOptions)
        else:
            options = msgspec.convert(run.options, ImportOptions)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"run {run.run}: its options: {error}; task is 'tend' or 'import'") from error
    if isinstance(options, TendOptions):
        care = Care(
            retain_days=options.retain_days, vacuum_days=options.vacuum_days, keep_packages=options.keep_packages
        )
        tended = tend(run.lake, care, now=now, dry_run=options.dry_run, say=lambda words: report("tend", 0.5, words))
        words = as_words(tended, dry_run=options.dry_run).splitlines()
        return _done(run, words, msgspec.to_builtins(tended))
    if recipes is None:
        raise ConfigurationError(f"run {run.run}: an import needs the recipe of '{run.model}': give --recipes")
    return _import(run, Recipe.load(recipes / run.model), options, now, report)


def _import(run: RunFile, recipe: Recipe, options: ImportOptions, now: dt.datetime, report: Report) -> RunResult:
    if options.source is None:
        report("import", 0.2, f"the base rows of '{recipe.name}'")
        base = import_base(recipe, run.lake, now=now, replace=options.replace)
        return _done(run, [f"{base.new} base rows are new, {base.replaced} were replaced"], msgspec.to_builtins(base))
    columns = Columns(
        tensors={name: (given,) if isinstance(given, str) else tuple(given) for name, given in options.columns.items()},
        label=options.label,
        group=options.group,
        key=options.key,
    )
    source = RowsFrom.parse(options.source, query=options.query, timeout_s=options.timeout_s)
    done: ImportedTable = import_table(
        recipe,
        run.lake,
        source,
        columns,
        now=now,
        skip_bad=options.skip_bad,
        progress=lambda rows: report("import", 0.5, f"{rows} rows checked"),
    )
    words = [f"{done.rows} rows read; {done.new} samples and {done.labelled} labels are new, {done.bad} left out"]
    return _done(run, [*words, *done.complaints], msgspec.to_builtins(done))


def _done(run: RunFile, words: list[str], counted: dict[str, Any]) -> RunResult:
    return RunResult(fence=run.fence, state=RunState.DONE, reasons=tuple(words), evaluation=counted)


@click.command()
@click.argument("jobfile", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--work", required=True, type=click.Path(file_okay=False, path_type=Path), help="where the result goes")
@click.option("--recipes", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--checkpoints", type=click.Path(path_type=Path), hidden=True)
@click.option("--champion", type=click.Path(path_type=Path), hidden=True)
@click.option("--version", hidden=True)
def main(*, jobfile: Path, work: Path, recipes: Path | None, **_others: Any) -> None:
    """Execute JOBFILE; exit status 0 where DIR/result.json says how it ended."""
    lines = _claim_stdout()

    def report(stage: str, fraction: float, message: str) -> None:
        lines.write(msgspec.json.encode({"stage": stage, "fraction": fraction, "message": message}).decode() + "\n")
        lines.flush()

    run = msgspec.json.decode(jobfile.read_bytes(), type=RunFile)
    work.mkdir(parents=True, exist_ok=True)
    try:
        result = execute(run, recipes, report)
    except ShoalError as error:
        click.echo(f"{type(error).__name__}: {error}", err=True)
        retry = bool(getattr(error, "retry", isinstance(error, _MAY_PASS)))
        result = RunResult(fence=run.fence, state=RunState.FAILED, reasons=(str(error),), retry=retry)
    write_durably(work / RESULT_FILE, msgspec.json.encode(result))
    report(result.state.value, 1.0, "; ".join(result.reasons)[:500])


def _claim_stdout() -> TextIO:
    """Standard output for progress alone: whatever a library prints goes to standard error from now on."""
    sys.stdout.flush()
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lines


if __name__ == "__main__":
    run_and_end(main)
