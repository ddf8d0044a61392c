"""The input that a job names, pinned for one batch."""

from __future__ import annotations

from typing import Any

from edge_agent.contract.batch import BatchJob, ParquetInput
from trainer.batch.inputs.parquet import pin_parquet
from trainer.batch.inputs.pinned import Pinned


def pin(job: BatchJob, *, logical_time: str, since: dict[str, Any]) -> Pinned:
    """The files that one batch is about.

    Args:
        since: The watermark of the last batch; empty before the first.
    Raises:
        InputUnreadable: The input is not there, or not what the job says.
    """
    source = job.input
    if isinstance(source, ParquetInput):
        return pin_parquet(source, logical_time, since)
    raise AssertionError(source)
