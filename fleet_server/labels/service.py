"""Live accuracy: what the labels say about each device's answers."""

from __future__ import annotations

import dataclasses

import sqlalchemy as sa

from fleet_server.database import Database
from fleet_server.labels.tables import labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledAccuracy:
    """Labels of one device's answers with one package.

    Args:
        weighted_accuracy: Share of correct answers, each weighted by the inverse of its inclusion probability (Horvitz-
            Thompson), so that it stands for all requests though hard ones are asked for more often; None where
            every label was volunteered.
    """

    device: str
    package: str
    labels: int
    correct: int
    weighted_accuracy: float | None


def labels_of(connection: sa.Connection, model: str) -> int:
    """How many requests of a model have been labelled so far."""
    return int(connection.execute(sa.select(sa.func.count()).where(labels.c.model == model)).scalar_one())


class LabelService:
    """Reads the labels."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def counts(self) -> dict[str, int]:
        """Labelled requests by device."""
        by_device = sa.select(labels.c.device, sa.func.count()).group_by(labels.c.device)
        with self._db.read() as connection:
            return {device: int(count) for device, count in connection.execute(by_device)}

    def accuracy(self, model: str, *, since_ms: int = 0, until_ms: int | None = None) -> list[LabelledAccuracy]:
        """Accuracy per device and package, by the time of the requests."""
        asked = labels.c.inclusion_probability > 0
        weight = sa.case((asked, 1.0 / sa.func.nullif(labels.c.inclusion_probability, 0.0)), else_=0.0)
        select = (
            sa.select(
                labels.c.device,
                labels.c.package,
                sa.func.count().label("labels"),
                sa.func.sum(sa.case((labels.c.correct, 1), else_=0)).label("correct"),
                sa.func.sum(weight).label("weight"),
                sa.func.sum(sa.case((labels.c.correct, weight), else_=0.0)).label("correct_weight"),
            )
            .where(labels.c.model == model, labels.c.at_ms >= since_ms)
            .group_by(labels.c.device, labels.c.package)
            .order_by(labels.c.device, labels.c.package)
        )
        if until_ms is not None:
            select = select.where(labels.c.at_ms < until_ms)
        with self._db.read() as connection:
            return [
                LabelledAccuracy(
                    device=row.device,
                    package=row.package,
                    labels=row.labels,
                    correct=int(row.correct),
                    weighted_accuracy=row.correct_weight / row.weight if row.weight else None,
                )
                for row in connection.execute(select)
            ]
