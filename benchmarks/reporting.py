"""What it costs to lose nothing: the device's outbox and the server's ingest, beside bare SQLite on the same disk.

Ratios within one run are what counts. Writes build/bench/reporting.json.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.contract.messages import Sample, SampleBatch, SampleReason
from edge_agent.contract.tensors import Tensor
from edge_agent.contract.topics import DeviceTopics, Stream
from edge_agent.outbox.outbox import Outbox
from fleet_server.database import Database, metadata
from fleet_server.ingest.service import IngestService
from fleet_server.samples.handler import on_samples

MESSAGES = 1000
ROWS = 20  # samples per message, as a busy device sends them
TAKEN_AT_ONCE = 50


def batch(number: int) -> SampleBatch:
    """A message with samples of 8 x 8 pixels."""
    image = Tensor.of(np.zeros((1, 8, 8), np.float32))
    answer = Tensor.of(np.zeros(10, np.float32))
    samples = tuple(
        Sample(
            request_id=f"{number}-{row}", package="0" * 64, at_ms=1, reason=SampleReason.UNIFORM,
            inclusion_probability=1.0, prediction="1", confidence=0.9, margin=0.8,
            inputs={"image": image}, outputs={"probabilities": answer},
        )
        for row in range(ROWS)
    )  # fmt: skip
    return SampleBatch(model="digits", samples=samples)


def per_second(work: Callable[[], None], count: int) -> float:
    begin = time.perf_counter()
    work()
    return count / (time.perf_counter() - begin)


def bare_sqlite(path: Path, payload: bytes, *, at_once: int) -> Callable[[], None]:
    """Commit the same bytes, synced, ``at_once`` in a transaction."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, payload BLOB)")

    def work() -> None:
        for _ in range(0, MESSAGES, at_once):
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT INTO t (payload) VALUES (?)", [(payload,)] * at_once)
            database.execute("COMMIT")

    return work


def main() -> None:
    bodies = [batch(number) for number in range(MESSAGES)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outbox = Outbox(folder / "outbox.db", fleet="bench", device="one")

        def append() -> None:
            for body in bodies:
                outbox.append(Stream.SAMPLES, body)

        appended = per_second(append, MESSAGES)
        waiting = outbox.pending(Stream.SAMPLES, after=0, limit=MESSAGES, limit_bytes=1 << 30)
        payloads = [pending.payload for pending in waiting]
        one_by_one = per_second(bare_sqlite(folder / "bare1.db", payloads[0], at_once=1), MESSAGES)
        in_batches = per_second(bare_sqlite(folder / "bare2.db", payloads[0], at_once=TAKEN_AT_ONCE), MESSAGES)

        db = Database(f"sqlite:///{folder / 'server.db'}")
        metadata.create_all(db.engine)
        ingest = IngestService(db, dict.fromkeys(Stream, on_samples))
        topic = DeviceTopics("bench", "one").up(Stream.SAMPLES)

        def take() -> None:
            for start in range(0, MESSAGES, TAKEN_AT_ONCE):
                ingest.take_all([(topic, payload) for payload in payloads[start : start + TAKEN_AT_ONCE]])

        taken = per_second(take, MESSAGES)
        assert ingest.progress()[0].sequence == MESSAGES
        outbox.close()
        db.close()
    rows: list[dict[str, Any]] = [
        {"what": "outbox append, each synced", "per_second": appended, "reference": one_by_one},
        {"what": f"ingest, {TAKEN_AT_ONCE} per commit", "per_second": taken, "reference": in_batches},
    ]
    target = Path("build/bench/reporting.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"messages of {len(payloads[0]) / 1024:.1f} KiB, {ROWS} samples each")
    print(f"{'':<28}{'messages/s':>12}{'bare SQLite':>13}{'ratio':>8}")
    for what, rate, reference in ((row["what"], row["per_second"], row["reference"]) for row in rows):
        print(f"{what:<28}{rate:>12.0f}{reference:>13.0f}{float(rate) / float(reference):>8.2f}")
    print(
        "ratio: our messages per second, over rows of as many bytes that bare SQLite commits and syncs, equally many in"
    )
    print(
        "       one commit, on the same disk. At 1, encoding, numbering and checking would be free. Higher is better."
    )


if __name__ == "__main__":
    main()
