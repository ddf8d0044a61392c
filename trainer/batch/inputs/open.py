"""The input that a job names, pinned for one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edge_agent.contract.batch import BatchJob, CsvInput, DeltaInput, LakeInput, ParquetInput
from trainer.batch.inputs.csv import pin_csv
from trainer.batch.inputs.delta import pin_delta, pin_lake
from trainer.batch.inputs.parquet import pin_parquet
from trainer.batch.inputs.pinned import Pinned
from trainer.batch.inputs.sql import pin_sql
from trainer.batch.storage import Storage


def pin(job: BatchJob, *, logical_time: str, since: dict[str, Any], model: str, spool: Callable[[], Storage]) -> Pinned:
    """The files that one batch is about.

    Args:
        since: The watermark of the last batch; empty before the first.
        model: Name of what answers, for the lake.
        spool: Gives a folder for rows that come as a stream.
    Raises:
        InputUnreadable: The input is not there, or not what the job says.
    """
    source = job.input
    if isinstance(source, LakeInput):
        return pin_lake(source, logical_time, since, model)
    if isinstance(source, DeltaInput):
        return pin_delta(source, logical_time, since)
    if isinstance(source, ParquetInput):
        return pin_parquet(source, logical_time, since)
    if isinstance(source, CsvInput):
        return pin_csv(source, logical_time, since, spool())
    return pin_sql(source, logical_time, since, spool())
