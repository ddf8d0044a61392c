"""What a run is made from, and the file that its worker is given."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from edge_agent.contract.runs import RunFile, RunKind
from fleet_server.schedules.creation import BACKFILL
from fleet_server.schedules.graph import SUCCEEDED
from fleet_server.schedules.slots import rfc3339
from fleet_server.schedules.tables import runs

_MOST_TRIED = 200


def made_from(
    run: sa.RowMapping, versions: tuple[int | None, int | None], champion: tuple[str, str] | None
) -> dict[str, Any]:
    """What a claimed run is made from: the newest, but the data of its first attempt, so that a later one resumes.

    That is so after a hand-back too, which counts as no attempt.
    """
    samples, labels = versions
    digest, version = champion or (None, None)
    if run["samples_version"] is not None:
        samples, labels = run["samples_version"], run["labels_version"]
    return {
        "samples_version": samples,
        "labels_version": labels,
        "champion": digest,
        "champion_version": version,
    }


def tried(connection: sa.Connection, run: sa.RowMapping) -> dict[str, str]:
    """Inputs of the model's newest trainings that came to a verdict, by run."""
    if run["kind"] != RunKind.TRAIN.value:
        return {}
    verdicts = runs.c.state.in_([state.value for state in SUCCEEDED])
    of_model = sa.and_(runs.c.model == run["model"], runs.c.kind == run["kind"], runs.c.inputs.is_not(None), verdicts)
    query = sa.select(runs.c.id, runs.c.inputs).where(of_model).order_by(runs.c.created_at_ms.desc())
    return {row.id: row.inputs for row in connection.execute(query.limit(_MOST_TRIED))}


def run_file(run: dict[str, Any], *, lake: str, tried: dict[str, str]) -> RunFile:
    """The file of a claimed run.

    Args:
        run: Its row.
        tried: Inputs of earlier runs that came to a verdict, by run.
    """
    as_known_then = run["trigger"] == BACKFILL and run["kind"] == RunKind.TRAIN.value
    return RunFile(
        run=run["id"],
        model=run["model"],
        trigger=run["trigger"],
        reason=run["reason"],
        logical_time=rfc3339(run["logical_time_ms"]),
        lake=lake,
        seed=run["seed"],
        fence=run["fence"],
        samples_version=run["samples_version"],
        labels_version=run["labels_version"],
        labels_until=rfc3339(run["logical_time_ms"]) if as_known_then else None,
        champion=run["champion"],
        champion_version=run["champion_version"],
        kind=RunKind(run["kind"]),
        step=run["step"],
        attempt=run["attempts"],
        options=run["options"],
        timeout_s=run["timeout_s"],
        cpus=run["cpus"],
        gpus=run["gpus"],
        tried=tried,
    )
