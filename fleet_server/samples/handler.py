"""Samples from a message into the spool."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from edge_agent.contract.envelope import Envelope
from edge_agent.contract.errors import MessageError
from edge_agent.contract.lake import SAMPLES
from edge_agent.contract.messages import Sample, SampleBatch
from edge_agent.contract.names import is_name
from fleet_server.samples.tables import lake_spool


def on_samples(connection: sa.Connection, envelope: Envelope, batch: SampleBatch) -> None:
    """Handler of stream ``samples``.

    Raises:
        MessageError: A row that must not enter the lake: no model's name, a time beyond the calendar.
    """
    check_model(batch.model)
    spool(connection, SAMPLES, (_row(envelope.device, batch.model, sample) for sample in batch.samples))


def spool(connection: sa.Connection, lake_table: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put rows, by column name as :mod:`edge_agent.contract.lake` has them, before the lake's door."""
    packed = [{"lake_table": lake_table, "row": msgspec.msgpack.encode(row)} for row in rows]
    if packed:
        connection.execute(sa.insert(lake_spool), packed)


def check_model(model: str) -> None:
    """Refuse what is no model's name.

    Raises:
        MessageError: It is none.
    """
    if not is_name(model):
        raise MessageError(f"{model[:80]!r} is no name of a model")


def day_of(at_ms: int) -> str:
    """The UTC day of a time, as the lake is partitioned.

    Raises:
        MessageError: The time is beyond the calendar.
    """
    try:
        return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError) as error:
        raise MessageError(f"time {at_ms} ms is beyond the calendar") from error


def _row(device: str, model: str, sample: Sample) -> dict[str, Any]:
    return {
        "request_id": sample.request_id,
        "device": device,
        "model": model,
        "package": sample.package,
        "at_ms": sample.at_ms,
        "day": day_of(sample.at_ms),
        "reason": sample.reason.value,
        "inclusion_probability": sample.inclusion_probability,
        "prediction": sample.prediction,
        "confidence": sample.confidence,
        "margin": sample.margin,
        "group": sample.group,
        "inputs": msgspec.msgpack.encode(sample.inputs),
        "outputs": msgspec.msgpack.encode(sample.outputs),
    }
