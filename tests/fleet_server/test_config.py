"""Settings: from the file, the environment and the command line; what does not belong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.contract.errors import ConfigurationError
from fleet_server.config import read_config


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_everything_has_a_default_but_the_data_folder() -> None:
    config = read_config(None, {("data",): "/srv/shoal"}, {})
    assert (config.fleet, config.http.port, config.broker.port) == ("main", 8080, 1883)
    assert config.rollouts.waves == (1, 0.5, 1.0)
    with pytest.raises(ConfigurationError, match="give --data DIR"):
        read_config(None, {}, {})


def test_the_command_line_comes_before_the_environment_before_the_file(file: Path) -> None:
    file.write_text("data = 'file'\nfleet = 'file'\nlake = 'file'\n[http]\nport = 1\npublic_url = 'file'")
    environment = {"SHOAL_DATA": "environment", "SHOAL_FLEET": "environment", "SHOAL_PUBLIC_URL": "http://proxy"}
    config = read_config(file, {("data",): "option", ("http", "host"): None}, environment)
    assert (config.data, config.fleet, config.lake) == ("option", "environment", "file")
    assert (config.http.port, config.http.public_url) == (1, "http://proxy")


def test_rules_of_every_feature_can_be_set(file: Path) -> None:
    file.write_text(
        "data = 'x'\n[rollouts]\nwaves = [2, 1.0]\n[rollouts.gate]\nsoak_s = 1\n[runs]\ncool_down_s = 5\n"
        "[monitoring.harm]\nmin_labels = 7"
    )
    config = read_config(file, {}, {})
    assert config.rollouts.waves == (2, 1.0)
    assert config.rollouts.gate.soak_s == 1
    assert config.runs.cool_down_s == 5
    assert config.monitoring.harm.min_labels == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fleeet = 'x'", "unknown key fleeet; known here: broker, data"),
        ("[monitoring.drift]\nmin_row = 5", "unknown key monitoring.drift.min_row"),
        ("[rollouts.gate]\nsoak = 5", "unknown key rollouts.gate.soak"),
        ("[http]\nport = 70000", "http.port: 70000 is not between 0 and 65535"),
        ("http = 5", "Expected `object`"),
        ("[updates]\ndeltas_mib = -1", "Expected `int` >= 0 - at `$.updates.deltas_mib`"),
        ("fleet = 'Not A Name'", "fleet 'Not A Name'"),
        ("[rollouts]\nwaves = [1]", "the last one must be 1.0"),
        ("[monitoring.drift]\nmin_rows = 1", "min_rows >= 20"),
        ("= nonsense", "Invalid"),
    ],
)
def test_bad_settings_are_named(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError) as raised:
        read_config(file, {("data",): "x"}, {})
    assert said in str(raised.value)
    assert str(raised.value).startswith(str(file))


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(ConfigurationError, match="give an existing file"):
        read_config(file, {}, {})
