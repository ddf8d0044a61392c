"""Commands that other parts add, and what becomes of them where their dependencies are absent."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edge_agent.contract.errors import ConfigurationError
from fleet_server.cli import main
from fleet_server.commands.plugins import GROUP, plugin_commands


@click.command("greet")
def greet() -> None:
    click.echo("hello")


commands = [greet]


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group=GROUP)


def test_commands_of_other_parts_join_our_own() -> None:
    found = plugin_commands([entry("greetings", f"{__name__}:commands")])
    assert found == {"greet": greet}


def test_a_part_without_its_dependencies_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_much.py").write_text("import a_library_that_is_absent\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = plugin_commands([entry("trainer", "needs_much:commands")])
    assert list(found) == ["trainer"]
    assert "pip install 'shoal[trainer]'" in (found["trainer"].help or "")
    with pytest.raises(ConfigurationError, match=r"No module named 'a_library.*pip install 'shoal\[trainer\]'"):
        found["trainer"].main(["work", "--once"], standalone_mode=False)
    assert "needs_much" not in sys.modules


@pytest.mark.parametrize("name", ["server", "devices", "models", "rollouts", "runs", "tokens", "login"])
def test_every_command_explains_itself(name: str) -> None:
    shown = CliRunner().invoke(main, [name, "--help"])
    assert shown.exit_code == 0
    assert len(shown.output.splitlines()) > 5
    assert "\\b" not in shown.output
