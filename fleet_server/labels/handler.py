"""Labels from a message: into the table for live accuracy, and into the spool for the lake."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from edge_agent.contract.envelope import Envelope
from edge_agent.contract.errors import MessageError
from edge_agent.contract.lake import LABELS
from edge_agent.contract.messages import Label, LabelBatch
from fleet_server.labels.tables import labels
from fleet_server.samples.handler import check_model, spool
from fleet_server.upsert import upsert


def on_labels(connection: sa.Connection, envelope: Envelope, batch: LabelBatch) -> None:
    """Handler of stream ``labels``: of several labels of one request the one with the latest ``labelled_at_ms`` holds.

    Raises:
        MessageError: No model's name, or a probability outside 0..1.
    """
    check_model(batch.model)
    for label in batch.labels:
        if not 0.0 <= label.inclusion_probability <= 1.0:
            raise MessageError(f"request {label.request_id}: inclusion probability {label.inclusion_probability}")
        _keep_newest(connection, envelope.device, batch.model, label)
    spool(connection, LABELS, (_row(envelope.device, batch.model, label) for label in batch.labels))


def _keep_newest(connection: sa.Connection, device: str, model: str, label: Label) -> None:
    keys = {"device": device, "request_id": label.request_id}
    known = sa.select(labels.c.labelled_at_ms).where(*(labels.c[name] == value for name, value in keys.items()))
    before = connection.execute(known).scalar()
    if before is not None and before > label.labelled_at_ms:
        return
    values = {
        "model": model,
        "package": label.package,
        "label": label.label,
        "prediction": label.prediction,
        "correct": label.label == label.prediction,
        "confidence": label.confidence,
        "inclusion_probability": label.inclusion_probability,
        "at_ms": label.at_ms,
        "labelled_at_ms": label.labelled_at_ms,
    }
    upsert(connection, labels, keys, values)


def _row(device: str, model: str, label: Label) -> dict[str, Any]:
    return {
        "request_id": label.request_id,
        "device": device,
        "model": model,
        "package": label.package,
        "label": label.label,
        "prediction": label.prediction,
        "inclusion_probability": label.inclusion_probability,
        "source": label.source,
        "at_ms": label.at_ms,
        "labelled_at_ms": label.labelled_at_ms,
    }
