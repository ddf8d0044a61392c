from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from deltalake import DeltaTable

from edge_agent.contract.envelope import Envelope, encode
from edge_agent.contract.errors import MessageError
from edge_agent.contract.lake import LABEL_COLUMNS, LABELS, SAMPLE_COLUMNS, SAMPLES
from edge_agent.contract.messages import Label, LabelBatch, Sample, SampleBatch, SampleReason
from edge_agent.contract.tensors import Tensor
from edge_agent.contract.topics import Stream
from fleet_server.database import Database, metadata
from fleet_server.labels.handler import on_labels
from fleet_server.labels.service import LabelledAccuracy, LabelService
from fleet_server.samples.handler import on_samples
from fleet_server.samples.lake_writer import LakeWriter
from fleet_server.samples.service import SampleService

DAY_MS = 86_400_000


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'server.db'}")
    metadata.create_all(database.engine)
    yield database
    database.close()


@pytest.fixture
def lake(tmp_path: Path) -> str:
    return str(tmp_path / "lake")


def envelope(device: str = "d1") -> Envelope:
    return Envelope(
        fleet="reef",
        device=device,
        epoch="e1",
        stream=Stream.SAMPLES,
        sequence=1,
        previous=0,
        sent_at_ms=1,
        body=msgspec.Raw(b"\xc0"),
    )


def sample(number: int, day: int = 0) -> Sample:
    return Sample(
        request_id=f"r{number}",
        package="0" * 64,
        at_ms=day * DAY_MS + number,
        reason=SampleReason.MARGIN,
        inclusion_probability=0.25,
        prediction="7",
        confidence=0.6,
        margin=0.1,
        group="subject-1",
        inputs={"image": Tensor.of(np.full((1, 8), number, dtype=np.float32))},
        outputs={"probabilities": Tensor.of(np.ones((1, 10), dtype=np.float32) / 10)},
    )


def label(number: int, *, said: str = "7", labelled_at_ms: int = 5, probability: float = 0.5) -> Label:
    return Label(
        request_id=f"r{number}",
        package="0" * 64,
        label=said,
        prediction="7",
        confidence=0.6,
        inclusion_probability=probability,
        at_ms=number,
        labelled_at_ms=labelled_at_ms,
    )


def take_samples(db: Database, *samples: Sample, model: str = "digits", device: str = "d1") -> None:
    with db.write() as connection:
        on_samples(connection, envelope(device), SampleBatch(model=model, samples=samples))


def take_labels(db: Database, *labels: Label, device: str = "d1") -> None:
    with db.write() as connection:
        on_labels(connection, envelope(device), LabelBatch(model="digits", labels=labels))


def ids(lake: str, table: str = SAMPLES) -> list[str]:
    return sorted(DeltaTable(f"{lake}/{table}").to_pyarrow_table().column("request_id").to_pylist())


def test_samples_and_labels_reach_the_lake_in_the_columns_of_the_contract(db: Database, lake: str) -> None:
    take_samples(db, sample(1), sample(2, day=1))
    take_labels(db, label(1))
    service = SampleService(db, lake)
    assert (service.versions(), service.counts()) == ({SAMPLES: None, LABELS: None}, {SAMPLES: 0, LABELS: 0})
    assert service.spooled() == {SAMPLES: 2, LABELS: 1}
    writer = LakeWriter(db, lake)
    writer.prepare()
    writer.prepare()
    assert (service.versions(), service.counts()) == ({SAMPLES: 0, LABELS: 0}, {SAMPLES: 0, LABELS: 0})
    assert writer.flush() == 3
    assert writer.flush() == 0
    assert (service.versions(), service.counts()) == ({SAMPLES: 1, LABELS: 1}, {SAMPLES: 2, LABELS: 1})
    assert service.spooled() == {SAMPLES: 0, LABELS: 0}
    table = DeltaTable(f"{lake}/{SAMPLES}")
    assert table.metadata().partition_columns == ["day"]
    assert sorted(p["day"] for p in table.partitions()) == ["1970-01-01", "1970-01-02"]
    for name, columns in ((SAMPLES, SAMPLE_COLUMNS), (LABELS, LABEL_COLUMNS)):
        fields = DeltaTable(f"{lake}/{name}").schema().fields
        assert [field.name for field in fields] == list(columns)
    row = next(row for row in table.to_pyarrow_table().to_pylist() if row["request_id"] == "r2")
    assert (row["device"], row["model"], row["reason"], row["group"]) == ("d1", "digits", "margin", "subject-1")
    inputs = msgspec.msgpack.decode(row["inputs"], type=dict[str, Tensor])
    assert inputs["image"].array().tolist() == [[2.0] * 8]


@pytest.mark.parametrize("crash", ["before numbering", "before the lake", "after the lake"])
def test_a_crash_between_any_two_steps_neither_loses_nor_doubles_a_row(
    db: Database, lake: str, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    take_samples(db, *(sample(n) for n in range(5)))
    writer = LakeWriter(db, lake)
    append = LakeWriter._append

    class Killed(BaseException):
        pass

    def killed(self: LakeWriter, *arguments: object) -> None:
        if crash == "after the lake":
            append(self, *arguments)  # type: ignore[arg-type]
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LakeWriter, "_append", killed)
        if crash == "before numbering":
            patch.setattr(LakeWriter, "_last_in_lake", killed)
        with pytest.raises(Killed):
            writer.flush()
    take_samples(db, sample(9))  # comes in between, and must not slip into the numbered batch
    again = LakeWriter(db, lake)
    assert again.flush() == 6
    assert ids(lake) == ["r0", "r1", "r2", "r3", "r4", "r9"]
    assert SampleService(db, lake).spooled()[SAMPLES] == 0


def test_a_new_database_beside_an_old_lake_still_appends(db: Database, lake: str, tmp_path: Path) -> None:
    for n in range(3):
        take_samples(db, sample(n))
        LakeWriter(db, lake).flush()
    fresh = Database(f"sqlite:///{tmp_path / 'fresh.db'}")
    metadata.create_all(fresh.engine)
    take_samples(fresh, sample(7))
    LakeWriter(fresh, lake).flush()
    fresh.close()
    assert ids(lake) == ["r0", "r1", "r2", "r7"]


def test_a_database_put_back_from_a_backup_still_appends_every_new_row(lake: str, tmp_path: Path) -> None:
    before = Database(f"sqlite:///{tmp_path / 'before.db'}")
    metadata.create_all(before.engine)
    take_samples(before, sample(1))
    LakeWriter(before, lake).flush()
    with sqlite3.connect(tmp_path / "before.db") as now, sqlite3.connect(tmp_path / "backup.db") as backup:
        now.backup(backup)
    now.close()
    backup.close()
    take_samples(before, sample(2))
    LakeWriter(before, lake).flush()
    before.close()
    restored = Database(f"sqlite:///{tmp_path / 'backup.db'}")
    for number in (3, 4):
        take_samples(restored, sample(number))
        LakeWriter(restored, lake).flush()
    restored.close()
    assert ids(lake) == ["r1", "r2", "r3", "r4"]


def test_many_rows_go_in_several_batches(db: Database, lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet_server.samples.lake_writer._BATCH_ROWS", 10)
    take_samples(db, *(sample(n) for n in range(25)))
    writer = LakeWriter(db, lake)
    assert writer.flush() == 25
    assert len(ids(lake)) == 25
    writer.compact()
    assert len(set(ids(lake))) == 25


def test_compaction_writes_small_row_groups_and_the_log_of_old_versions_stays(db: Database, lake: str) -> None:
    writer = LakeWriter(db, lake)
    for number in range(3):
        take_samples(db, *(sample(number * 1000 + n) for n in range(500)))
        writer.flush()
    DeltaTable(f"{lake}/{SAMPLES}").alter.set_table_properties({"delta.logRetentionDuration": "interval 30 days"})
    writer.compact()
    table = DeltaTable(f"{lake}/{SAMPLES}")
    assert table.metadata().configuration["delta.logRetentionDuration"] == "interval 3650 days"
    fragments = [group for found in table.to_pyarrow_dataset().get_fragments() for group in found.row_groups]
    assert len(table.file_uris()) == 1
    assert [group.num_rows for group in fragments] == [1024, 476]
    assert len(set(ids(lake))) == 1500


@pytest.mark.parametrize(("model", "at_ms"), [("../digits", 1), ("digits", 1 << 60)])
def test_rows_that_must_not_enter_the_lake_are_refused(db: Database, model: str, at_ms: int) -> None:
    with pytest.raises(MessageError):
        take_samples(db, msgspec.structs.replace(sample(1), at_ms=at_ms), model=model)


def test_of_several_labels_the_latest_holds_in_the_table_and_all_stay_in_the_lake(db: Database, lake: str) -> None:
    take_labels(db, label(1, said="1", labelled_at_ms=10))
    take_labels(db, label(1, said="7", labelled_at_ms=20))
    take_labels(db, label(1, said="2", labelled_at_ms=15))
    service = LabelService(db)
    assert service.counts() == {"d1": 1}
    assert service.accuracy("digits")[0].correct == 1
    LakeWriter(db, lake).flush()
    assert ids(lake, LABELS) == ["r1"] * 3


def test_accuracy_weighs_each_label_by_how_seldom_its_like_is_asked_for(db: Database) -> None:
    take_labels(db, label(1, said="7", probability=0.1), label(2, said="1", probability=1.0))
    take_labels(db, label(3, said="1", probability=0.0), device="d2")
    first, second = LabelService(db).accuracy("digits")
    assert (first.labels, first.correct) == (2, 1)
    assert first.weighted_accuracy == pytest.approx(10 / 11)
    assert second == LabelledAccuracy(device="d2", package="0" * 64, labels=1, correct=0, weighted_accuracy=None)
    assert LabelService(db).accuracy("digits", since_ms=2, until_ms=3)[0].labels == 1


def test_a_probability_that_is_none_is_refused(db: Database) -> None:
    for probability in (-0.1, 1.5, float("nan")):
        with pytest.raises(MessageError, match="inclusion probability"):
            take_labels(db, label(1, probability=probability))


def test_messages_fit_through_the_codec(db: Database) -> None:
    assert len(encode(SampleBatch(model="digits", samples=(sample(1),)))) > 0
