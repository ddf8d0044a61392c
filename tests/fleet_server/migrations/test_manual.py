"""docs/operations.md does what it says."""

from __future__ import annotations

from pathlib import Path

from fleet_server.config import VARIABLES, read_config
from fleet_server.data_folder import DataFolder
from fleet_server.database import Database
from fleet_server.migrate import upgrade
from fleet_server.samples.lake_writer import LakeWriter
from tests.fleet_server.migrations.manual import block, go_back
from tests.fleet_server.migrations.revisions import NEXT, with_next
from tests.fleet_server.samples.test_lake import ids, sample, take_samples


def test_the_example_of_settings_is_accepted_with_and_without_its_commented_lines(
    repository: Path, tmp_path: Path
) -> None:
    example, file = block(repository, "toml"), tmp_path / "shoal.toml"
    for text in (example, example.replace("# database", "database").replace("# lake", "lake")):
        file.write_text(text)
        config = read_config(file, environment={})
        assert (config.http.port, config.broker.port, config.rollouts.gate.soak_s) == (8080, 1883, 600)
    assert config.database.startswith("postgresql+psycopg://")
    assert config.lake


def test_every_variable_of_the_environment_is_named(repository: Path) -> None:
    page = (repository / "docs" / "operations.md").read_text()
    assert [variable for variable in VARIABLES if f"`{variable}`" not in page] == []


def test_after_the_way_back_the_lake_takes_every_new_row(repository: Path, tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    db, lake = Database(f"sqlite:///{folder.database}"), str(folder.lake)
    upgrade(db)
    take_samples(db, sample(0))
    LakeWriter(db, lake).flush()
    upgrade(db, scripts=with_next(tmp_path, "pass"))
    for number in (1, 2):
        take_samples(db, sample(number))
        LakeWriter(db, lake).flush()
    db.close()
    go_back(repository, tmp_path, NEXT)
    assert not upgrade(db).needed
    take_samples(db, sample(7))
    LakeWriter(db, lake).flush()
    db.close()
    assert ids(lake) == ["r0", "r1", "r2", "r7"]
