from __future__ import annotations

from pathlib import Path

import pytest
from deltalake import DeltaTable

from edge_agent.contract.errors import MalformedRequest
from edge_agent.contract.runs import RunKind, RunResult, RunState
from edge_agent.runtime.package import Package
from fleet_server.errors import NotFound
from fleet_server.predictions.answer_table import NoAnswers
from fleet_server.predictions.places import PlaceRefused, Places
from fleet_server.predictions.service import PredictionService
from fleet_server.schedules.graph import Step
from fleet_server.schedules.leases import Claimant
from fleet_server.schedules.service import RunService
from tests.fakes.packages import make_package
from tests.fleet_server.fleet import Fleet
from tests.trainer.batch.jobs import expected, images, job, run, table, write

MONDAY, TUESDAY = "2026-11-23T00:00:00Z", "2026-11-24T00:00:00Z"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return make_package(tmp_path_factory.mktemp("packages") / "digits")


@pytest.fixture
def service(fleet: Fleet, tmp_path: Path) -> PredictionService:
    places = Places([str(tmp_path)], base=tmp_path)
    return PredictionService(fleet.db, tmp_path / "indices", places=places, clock=fleet.clock)


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
    with pytest.raises(NoAnswers, match="is no table of answers"):
        service.register("nightly", "delta", str(tmp_path / "secrets"))
    with pytest.raises(NotFound, match="there are no answers of a batch job 'nightly'"):
        service.find("nightly", ["a"])


def test_a_table_elsewhere_is_not_served_not_even_through_a_link(
    package: Package, fleet: Fleet, tmp_path: Path
) -> None:
    answer(package, tmp_path / "private")
    allowed = tmp_path / "answers"
    allowed.mkdir()
    service = PredictionService(fleet.db, tmp_path / "indices", places=Places(["answers"], base=tmp_path))
    outside = str(tmp_path / "private" / "out")
    (allowed / "link").symlink_to(outside)
    for path in (outside, "answers/../private/out", "answers/link", f"file://{outside}", "s3://somebody/out"):
        with pytest.raises(PlaceRefused, match=r"add the folder or URI above it to `folders` under \[predictions\]"):
            service.register("nightly", "delta", path)
    (allowed / "link").unlink()
    Path(outside).rename(allowed / "out")
    assert service.register("nightly", "delta", "answers/out").newest == TUESDAY
    (allowed / "out").rename(outside)
    (allowed / "out").symlink_to(outside)
    with pytest.raises(PlaceRefused):
        service.find("nightly", ["ä/3"])


def test_files_of_a_table_that_are_links_to_others_are_not_read(
    package: Package, service: PredictionService, tmp_path: Path
) -> None:
    answer(package, tmp_path, "parquet")
    answer(package, tmp_path / "private", "parquet")
    one = min((tmp_path / "out").glob("batch-*/*.parquet"))
    other = min((tmp_path / "private" / "out").glob("batch-*/*.parquet"))
    one.unlink()
    one.symlink_to(other)
    with pytest.raises(NoAnswers, match="names a file that is none of its own"):
        service.register("nightly", "parquet", str(tmp_path / "out"))


@pytest.mark.parametrize("job", ["..", "a/b", "", "A"])
def test_a_job_is_called_as_a_folder_may_be(service: PredictionService, tmp_path: Path, job: str) -> None:
    with pytest.raises(MalformedRequest, match="use 1 to 63 of"):
        service.register(job, "delta", str(tmp_path))


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [
        ("s3://ours/answers/night", True),
        ("s3://ours/answers", True),
        ("s3://ours/answers-of-others", False),
        ("s3://ours/answers/../secrets", False),
        ("s3://ours/answers/x?endpoint_override=http://elsewhere", False),
        ("s3://me@ours/answers/x", False),
        ("gs://ours/answers/x", False),
    ],
)
def test_of_a_bucket_what_lies_below_an_allowed_uri_is_served(uri: str, allowed: bool, tmp_path: Path) -> None:
    places = Places(["s3://ours/answers"], base=tmp_path)
    if allowed:
        assert places.checked(uri) == uri
        return
    with pytest.raises(PlaceRefused):
        places.checked(uri)


def test_a_worker_is_believed_where_it_wrote_only_what_an_administrator_asked_for(
    package: Package, fleet: Fleet, tmp_path: Path
) -> None:
    answer(package, tmp_path)
    service = PredictionService(fleet.db, tmp_path / "indices", places=Places([], base=tmp_path))
    asked = str(tmp_path / "out")
    wanted = {
        "name": "nightly",
        "key": ["id"],
        "model": {"name": "digits"},
        "input": {"kind": "parquet", "path": "in"},
        "output": {"kind": "delta", "path": asked},
    }
    runs = RunService(fleet.db, lake="lake", lake_versions=lambda: (1, 1), champion=lambda _: None)

    def told(output: str) -> None:
        runs.request("digits", step=Step(kind=RunKind.BATCH, options={"job": wanted}))
        run = runs.claim(Claimant(worker="w", kinds=(RunKind.BATCH,)))
        assert run is not None
        evaluation = {"output": output, "output_kind": "delta"}
        runs.finish(run.run, RunResult(fence=run.fence, state=RunState.DONE, reasons=(), evaluation=evaluation))

    told(asked)
    assert service.show("nightly").newest == TUESDAY
    assert service.jobs() == ["nightly"]
    told(str(tmp_path / "private"))
    with pytest.raises(PlaceRefused):
        service.show("nightly")
