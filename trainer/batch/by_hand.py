"""A batch job that a person runs: its model fetched where it lies on the server, its slots answered one by one."""

from __future__ import annotations

import sys
import tomllib
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edge_agent.contract.batch import BatchJob, SqlOutput, decode_job
from edge_agent.contract.errors import ConfigurationError, ServerRefused
from edge_agent.runtime.package import Package
from trainer.batch.batch import Batch, Outcome
from trainer.batch.choice import fetch, local_package
from trainer.batch.model import BatchModel
from trainer.batch.moments import parse, written
from trainer.server_client import ServerClient

Say = Callable[[str], None]


def read_job(file: Path, *, replace: bool) -> BatchJob:
    """The job in a TOML file.

    Raises:
        ConfigurationError: It is none; the text says where.
        tomllib.TOMLDecodeError: It is no TOML.
    """
    try:
        job = decode_job(tomllib.loads(file.read_text()))
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {error}") from error
    return msgspec.structs.replace(job, replace=True) if replace else job


def answer_by_hand(
    job: BatchJob,
    logical_times: Sequence[str],
    *,
    server: str | None,
    token: str | None,
    work: Path,
    say: Say,
    dry_run: bool = False,
) -> None:
    """Answer slots, the earliest first, and say what came of each.

    Raises:
        ShoalError: Something is wrong; slots before the one it is about are committed.
    """
    run = f"by-hand-{uuid.uuid4().hex[:12]}"
    times = sorted(written(parse(text)) for text in logical_times)
    client = ServerClient(server, token or "") if server else None
    try:
        package = _package(job, client, work)
        model = BatchModel(package, variant=job.model.variant, outputs=job.outputs, batch_rows=job.resources.batch_rows)
        if model.dependent:
            say(f"rows are answered one by one: {model.dependent}")
        for text in times:
            batch = Batch(job, model, logical_time=text, run=run, work=work, report=_progress)
            if dry_run:
                say(batch.preview())
                continue
            outcome = batch.run()
            _tell(outcome, text, say)
        if client is not None and not dry_run and not isinstance(job.output, SqlOutput):
            _serve(job, client, outcome.output, say)
    finally:
        if client is not None:
            client.close()


def _serve(job: BatchJob, client: ServerClient, output: str, say: Say) -> None:
    """Let the server serve the answers; they are there, whether or not it wants to."""
    place = output if "://" in output else str(Path(output).absolute())
    try:
        client.serve_answers(job.name, str(type(job.output).__struct_config__.tag), place)
    except ServerRefused as error:
        say(f"not served by key: {error}")
    else:
        say(f"served by key: shoal batch get {job.name} KEY")


def _package(job: BatchJob, client: ServerClient | None, work: Path) -> Package:
    if job.model.package is not None:
        return local_package(job.model, None)
    if client is None:
        raise ConfigurationError(
            f"model '{job.model.name}' lies on the fleet server: give --server and --token (or SHOAL_SERVER and "
            "SHOAL_TOKEN), or let the job name a package folder"
        )
    return fetch(job.model, client, work.absolute() / "packages")


def _tell(outcome: Outcome, logical_time: str, say: Say) -> None:
    pace = ""
    if outcome.record is not None and outcome.fresh and outcome.seconds > 0:
        pace = f" in {outcome.seconds:.1f} s, {outcome.record.rows / outcome.seconds:.0f} rows/s"
    say(f"{logical_time}: {outcome.reason}{pace}; {outcome.output}")
    for name, rows in sorted(outcome.noted.items()):
        say(f"  let through: {name}, {rows} rows")


def _progress(stage: str, fraction: float, message: str, metrics: dict[str, float]) -> None:  # noqa: ARG001
    if sys.stderr.isatty():
        sys.stderr.write(f"{fraction:4.0%} {stage:<9} {message}\n")
