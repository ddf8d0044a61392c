"""What the cameras sent, held against what the server has: request by request where there are names, else by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from edge_agent.contract.lake import LABELS, SAMPLES


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What one camera sent and got an answer to.

    Args:
        labels: By request; each of these requests was a sample too, for only samples are asked about.
        failed: Requests that got none, or an error.
    """

    requests: int
    failed: int
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Received:
    """What the server has of one device.

    Args:
        requests: As the device counted them, window by window.
        samples: Request identifiers of all rows of the lake's samples; ``labels``: those of its labels, each with it.
        withheld: Messages that the device dropped at its limit, or that the server could not take.
    """

    requests: int
    samples: Sequence[str] = ()
    labels: Sequence[tuple[str, str]] = ()
    withheld: int = 0


def difference(sent: Sent, received: Received) -> tuple[int, int]:
    """How many records are lost, and how many are there twice or were never sent.

    Requests have no names at the server: one lost and another counted twice would not show. Labels and samples do.
    """
    labels, samples = set(received.labels), set(received.samples)
    lost = (
        max(0, sent.requests - received.requests)
        + len(set(sent.labels.items()) - labels)
        + len(sent.labels.keys() - samples)
        + received.withheld
    )
    surplus = (
        max(0, received.requests - sent.requests)
        + len(received.labels)
        - len(set(sent.labels.items()) & labels)
        + len(received.samples)
        - len(samples)
    )
    return lost, surplus


def received(lake: str, metrics: Sequence[Mapping[str, Any]], ingest: Mapping[str, Any]) -> dict[str, Received]:
    """What the server has, by device.

    Args:
        metrics, ingest: As its REST API tells them.
    """
    samples = _by_device(lake, SAMPLES, ["request_id"])
    labels = _by_device(lake, LABELS, ["request_id", "label"])
    return {
        row["device"]: Received(
            requests=row["requests"],
            samples=[request for (request,) in samples.get(row["device"], [])],
            labels=[(request, label) for request, label in labels.get(row["device"], [])],
            withheld=sum(stream["dropped"] for stream in ingest["streams"] if stream["device"] == row["device"]),
        )
        for row in metrics
    }


def labels_before(lake: str, moment_ms: int) -> int:
    """How many labels devices gave before a moment, Unix milliseconds."""
    rows = _read(lake, LABELS, ["source", "labelled_at_ms"])
    return sum(row["labelled_at_ms"] < moment_ms for row in rows if row["source"] == "camera")


def _by_device(lake: str, table: str, columns: list[str]) -> dict[str, list[tuple[Any, ...]]]:
    found: dict[str, list[tuple[Any, ...]]] = {}
    for row in _read(lake, table, ["device", *columns]):
        found.setdefault(row["device"], []).append(tuple(row[column] for column in columns))
    return found


def _read(lake: str, table: str, columns: list[str]) -> list[dict[str, Any]]:
    path = f"{lake}/{table}"
    if not DeltaTable.is_deltatable(path):
        return []
    return list(pa.table(DeltaTable(path).to_pyarrow_table(columns=columns)).to_pylist())
