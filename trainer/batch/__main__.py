"""One batch run as a process of its own: ``python -m trainer.batch JOBFILE --work DIR``.

JOBFILE is a run file of kind ``batch``, whose option ``job`` holds the job. It says how far it is by JSON lines
``{"stage", "fraction", "message", "metrics"}`` on standard output, all else on standard error, and writes
``DIR/result.json``: also where the batch failed, with whether another attempt may succeed. The same DIR for the next
attempt, and it goes on where this one ended.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

import click
import msgspec

from edge_agent.contract.batch import JOB_OPTION, BatchJob, LakeInput, decode_job
from edge_agent.contract.errors import ConfigurationError, NetworkError, ShoalError, StorageFull
from edge_agent.contract.runs import RunFile, RunResult, RunState
from edge_agent.durable import write_durably
from edge_agent.ending import run_and_end
from trainer.batch.batch import Batch, Outcome
from trainer.batch.choice import local_package
from trainer.batch.errors import BatchOvertaken, EngineFailed
from trainer.batch.model import BatchModel

RESULT_FILE = "result.json"
_MAY_PASS = (NetworkError, StorageFull, BatchOvertaken, EngineFailed)


@click.command()
@click.argument("jobfile", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--work", required=True, type=click.Path(file_okay=False, path_type=Path), help="where the result goes")
@click.option("--checkpoints", type=click.Path(file_okay=False, path_type=Path), help="kept between attempts")
@click.option("--champion", type=click.Path(exists=True, file_okay=False, path_type=Path), help="package folder")
@click.option("--recipes", type=click.Path(path_type=Path), hidden=True)
@click.option("--version", hidden=True)
def main(
    *,
    jobfile: Path,
    work: Path,
    checkpoints: Path | None,
    champion: Path | None,
    recipes: Path | None,
    version: str | None,
) -> None:
    """Execute JOBFILE; exit status 0 where DIR/result.json says how it ended."""
    del recipes, version  # given to every kind of run
    lines = _claim_stdout()

    def report(stage: str, fraction: float, message: str, metrics: dict[str, float]) -> None:
        line = {"stage": stage, "fraction": round(fraction, 3), "message": message, "metrics": metrics}
        lines.write(msgspec.json.encode(line).decode() + "\n")
        lines.flush()

    run = msgspec.json.decode(jobfile.read_bytes(), type=RunFile)
    work.mkdir(parents=True, exist_ok=True)
    try:
        job = job_of(run)
        package = local_package(job.model, champion)
        report("load", 0.0, f"loading {package.manifest.name} version {package.manifest.version}", {})
        model = BatchModel(package, variant=job.model.variant, outputs=job.outputs, batch_rows=job.resources.batch_rows)
        kept = checkpoints or work
        outcome = Batch(job, model, logical_time=run.logical_time, run=run.run, work=kept, report=report).run()
        result = result_of(run, job, outcome)
    except ShoalError as error:
        click.echo(f"{type(error).__name__}: {error}", err=True)
        retry = bool(getattr(error, "retry", isinstance(error, _MAY_PASS)))
        result = RunResult(fence=run.fence, state=RunState.FAILED, reasons=(str(error),), retry=retry)
    write_durably(work / RESULT_FILE, msgspec.json.encode(result))
    report(result.state.value, 1.0, "; ".join(result.reasons), {})


def job_of(run: RunFile) -> BatchJob:
    """The job of a run file; its lake is the run's where it names none.

    Raises:
        ConfigurationError: The run has no job, or it is wrong.
    """
    if JOB_OPTION not in run.options:
        raise ConfigurationError(f"run {run.run}: its options hold no '{JOB_OPTION}'; a batch step needs one")
    job = decode_job(run.options[JOB_OPTION])
    if isinstance(job.input, LakeInput) and job.input.path is None:
        job = msgspec.structs.replace(job, input=msgspec.structs.replace(job.input, path=run.lake))
    return job


def result_of(run: RunFile, job: BatchJob, outcome: Outcome) -> RunResult:
    """What the worker tells the server."""
    record = outcome.record
    state = RunState.UNCHANGED if record is None else RunState.DONE
    told = {
        "output": outcome.output,
        "output_kind": type(job.output).__struct_config__.tag,
        "resumed_parts": outcome.resumed_parts,
        "seconds": round(outcome.seconds, 3),
        "noted": outcome.noted,
    }
    if record is not None:
        told |= {key: value for key, value in msgspec.to_builtins(record).items() if key != "watermark"}
    return RunResult(
        fence=run.fence,
        state=state,
        reasons=(outcome.reason,),
        package=record.package if record is not None else None,
        version=record.version if record is not None else None,
        evaluation=told,
    )


def _claim_stdout() -> TextIO:
    """Standard output for progress alone: whatever a library prints goes to standard error from now on."""
    sys.stdout.flush()
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lines


if __name__ == "__main__":
    run_and_end(main)
