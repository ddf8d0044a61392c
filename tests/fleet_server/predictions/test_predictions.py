from __future__ import annotations

from pathlib import Path

import pytest
from deltalake import DeltaTable

from edge_agent.contract.errors import ConfigurationError
from edge_agent.runtime.package import Package
from fleet_server.errors import NotFound
from fleet_server.predictions.service import PredictionService
from tests.fakes.packages import make_package
from tests.fleet_server.fleet import Fleet
from tests.trainer.batch.jobs import expected, images, job, run, table, write

MONDAY, TUESDAY = "2026-11-23T00:00:00Z", "2026-11-24T00:00:00Z"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return make_package(tmp_path_factory.mktemp("packages") / "digits")


@pytest.fixture
def service(fleet: Fleet, tmp_path: Path) -> PredictionService:
    return PredictionService(fleet.db, tmp_path / "indices", clock=fleet.clock)


def answer(package: Package, folder: Path, kind: str = "delta") -> None:
    """Two batches: the second answers ten keys of the first again, otherwise."""
    pixels = images(3000)
    output = {"kind": kind, "path": str(folder / "out")}
    some = job(package, folder, output=output, outputs=["probabilities"], keep=["site"])
    write(folder / "in", "a.parquet", table([f"ä/{at}" for at in range(3000)], pixels, site=["x"] * 3000))
    run(some, logical_time=MONDAY)
    write(folder / "in", "b.parquet", table([f"ä/{at}" for at in range(10)], images(10, 99), site=["y"] * 10))
    run(some, logical_time=TUESDAY)


@pytest.mark.parametrize("kind", ["delta", "parquet"])
def test_a_key_gets_its_newest_answer(package: Package, service: PredictionService, tmp_path: Path, kind: str) -> None:
    answer(package, tmp_path, kind)
    assert service.register("nightly", kind, str(tmp_path / "out")).newest == TUESDAY
    found = service.find("nightly", ["ä/3", "ä/2999", "ä/3000", "", "zz"])
    assert set(found) == {"ä/3", "ä/2999"}
    assert (found["ä/3"].logical_time, found["ä/3"].columns) == (TUESDAY, {"site": "y"})
    assert found["ä/3"].prediction == expected(images(10, 99))[3]
    assert (found["ä/2999"].logical_time, found["ä/2999"].prediction) == (MONDAY, expected(images(3000))[2999])
    assert len(found["ä/2999"].outputs["probabilities"]) == 10
    assert found["ä/2999"].package == package.digest
    older = service.find("nightly", ["ä/3"], logical_time="2026-11-23")
    assert older["ä/3"].prediction == expected(images(3000))[3]


def test_answers_are_found_after_the_table_was_compacted(
    package: Package, service: PredictionService, tmp_path: Path
) -> None:
    answer(package, tmp_path)
    service.register("nightly", "delta", str(tmp_path / "out"))
    service.find("nightly", ["ä/3"])
    answers = DeltaTable(str(tmp_path / "out"))
    answers.optimize.compact()
    answers.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    service.show("nightly")
    assert service.find("nightly", ["ä/3"])["ä/3"].logical_time == TUESDAY
    assert len(list((tmp_path / "indices" / "nightly").glob("*.keys"))) <= 2


def test_what_is_no_table_of_answers_is_not_served(fleet: Fleet, service: PredictionService, tmp_path: Path) -> None:
    write(tmp_path / "in", "a.parquet", table(["a"], images(1)))
    with pytest.raises(NotFound, match="there are no answers at"):
        service.register("nightly", "delta", str(tmp_path / "in"))
    from deltalake import write_deltalake

    write_deltalake(str(tmp_path / "secrets"), table(["a"], images(1)))
    with pytest.raises((ConfigurationError, NotFound), match="is no table of answers"):
        service.register("nightly", "delta", str(tmp_path / "secrets"))
    with pytest.raises(NotFound, match="there are no answers of a batch job 'nightly'"):
        service.find("nightly", ["a"])
