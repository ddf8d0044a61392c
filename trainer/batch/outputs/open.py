"""The table of answers that a job names."""

from __future__ import annotations

from pathlib import Path

from edge_agent.contract.batch import BatchJob, DeltaOutput, ParquetOutput
from trainer.batch.outputs.delta import DeltaAnswers
from trainer.batch.outputs.parquet import ParquetAnswers
from trainer.batch.outputs.sql import SqlAnswers
from trainer.batch.outputs.table import Table


def open_output(job: BatchJob, work: Path) -> Table:
    """The table that the job's answers go to; it need not be there yet.

    Args:
        work: Folder for what a table has no room of its own for.
    Raises:
        OutputRefused, ConfigurationError: It cannot be used.
    """
    output = job.output
    if isinstance(output, DeltaOutput):
        return DeltaAnswers(output.path, job.name)
    if isinstance(output, ParquetOutput):
        return ParquetAnswers(output.path, job.name)
    return SqlAnswers(output, job.name, work)
