"""Settings are read whole or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.config import AgentConfig, prepare_state, read_config
from edge_agent.contract.errors import ConfigurationError


def test_without_a_file_the_defaults_hold() -> None:
    assert read_config(None) == AgentConfig()
    assert read_config(None).api.host == "127.0.0.1"


def test_a_file_overrides_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('state = "/data"\n[api]\nport = 9000\n')
    config = read_config(path)
    assert (config.state, config.api.port, config.api.host) == ("/data", 9000, "127.0.0.1")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[api]\nprot = 1\n", "no such key at $.api: prot; did you mean port?"),
        ("[[api.apps]]\nname = 'a'\ntoken = 'b'\n", "no such key at $.api.apps[0]: token; did you mean token_sha256?"),
        ("[report]\nevery_s = 5\n", "no such key at $.report: every_s; there may be: interval_s, outbox_limit_mib"),
        ("prot = 1\n", "no such key at the top of the file: prot; there may be: state, api, report, runtime"),
        ("[runtime]\nload = 'newest'\n", "'newest' - at `$.runtime.load`: it takes 'all', 'latest', 'none'"),
        ("[[api.apps]]\nname = 'a'\ntoken_sha256 = 'secret'\n", "first word of `printf %s TOKEN | sha256sum`"),
        ("[[api.apps]]\nname = 'A b'\n", "$.api.apps[0].name: must be 1 to 63 of a-z"),
        ("[api]\nsocket_mode = '99'\n", '$.api.socket_mode: must be permissions in octal, in quotes, such as "660"'),
        ("[api]\nsocket_mode = 660\n", '$.api.socket_mode: must be permissions in octal, in quotes, such as "660"'),
        ("[[api.apps]]\nname = 'a'\nuid = 'root'\n", "$.api.apps[0].uid: must be a user's number, such as 1000"),
        ("[[api.apps]]\nname = 'a'\ngid = -1\n", "$.api.apps[0].gid: must be a group's number, such as 1000"),
        ('[api]\nport = "many"\n', "$.api.port"),
        ("[api]\nport = 70000\n", "$.api.port"),
        ("[api]\nmax_rows = 0\n", "$.api.max_rows"),
        ("[api]\nmax_body_mib = 0\n", "$.api.max_body_mib"),
        ("[api]\nmax_pending = 0\n", "$.api.max_pending"),
        ("[report]\ninterval_s = 0.0\n", "$.report.interval_s"),
        ("[report]\noutbox_limit_mib = 0\n", "$.report.outbox_limit_mib"),
        ("[runtime]\nthreads = -1\n", "$.runtime.threads"),
        ("state = \n", "line 1"),
    ],
)
def test_what_does_not_belong_is_named_with_the_file(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        read_config(path)
    assert named in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_missing_file_is_an_error_not_the_defaults(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml: No such file"):
        read_config(tmp_path / "none.toml")


def test_the_state_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    state = tmp_path / "a" / "state"
    prepare_state(state)
    assert state.stat().st_mode & 0o777 == 0o700
    assert list(state.iterdir()) == []


def test_a_file_in_the_place_of_the_state_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be the state folder"):
        prepare_state(tmp_path / "state")
