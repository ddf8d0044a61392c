"""Commands that the pages show a person, and that no test runs as they stand, are commands with these options."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import click
import pytest

import edge_agent.cli
import fleet_server.cli

_ROOT = Path(__file__).parents[2]
PAGES = ["docs/device-api.md", "docs/jetson.md", "packaging/device/README.md"]
PROGRAMS = {"shoal-agent": edge_agent.cli.main, "shoal": fleet_server.cli.main}
# As a person types them: after a prompt, in an indented block, or as the agent's user.
_LINE = re.compile(r"^(?:\$ |    |sudo -u shoal )(?:\S*/)?(shoal(?:-agent)? [^#\n]+)", re.MULTILINE)
COMMANDS = [(page, line.strip()) for page in PAGES for line in _LINE.findall((_ROOT / page).read_text("utf-8"))]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_on_a_page_can_be_given(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    for package in (word for word in words if "digits-" in word):
        Path(package).mkdir(parents=True)
    command: click.Command = PROGRAMS[words.pop(0)]
    context: click.Context | None = None
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        context = click.Context(command, parent=context)
        found = command.get_command(context, words[0])
        assert found is not None, f"{page}: {line}: there is no command {words[0]!r}"
        command = found
        words.pop(0)
    try:
        with contextlib.suppress(click.exceptions.Exit):  # after --help
            command.make_context(command.name, words, parent=context)
    except click.UsageError as error:
        pytest.fail(f"{page}: {line}: {error.format_message()}")


def test_a_model_without_a_fleet_is_a_matter_of_six_commands() -> None:
    section = (_ROOT / "docs" / "device-api.md").read_text("utf-8").partition("### A device without a fleet")[2]
    block = section.partition("```console\n")[2].partition("```")[0]
    assert [line.split()[1:3] for line in block.splitlines()] == [
        ["make", "setup"],
        [".", ".venv/bin/activate"],
        ["shoal", "trainer"],
        ["shoal", "trainer"],
        ["shoal-agent", "install"],
        ["shoal-agent", "run"],
    ]


def test_the_wheel_is_named_as_it_is_built() -> None:
    wheel = f"shoal_agent-{edge_agent.__version__}-py3-none-any.whl"
    for page in PAGES:
        named = set(re.findall(r"shoal_agent-[\w.]+-py3-none-any\.whl", (_ROOT / page).read_text("utf-8")))
        assert named == {wheel}, page
