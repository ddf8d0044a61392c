"""Commands that other installed parts add to ``shoal``, through the entry-point group ``shoal.commands``.

Each entry is a list of click commands. One whose part lacks an optional dependency becomes a command that says so: the
rest of ``shoal`` works on.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

import click

from edge_agent.contract.errors import ConfigurationError

GROUP = "shoal.commands"


def plugin_commands(found: Iterable[EntryPoint] | None = None) -> dict[str, click.Command]:
    """The commands that installed parts add, by name."""
    commands: dict[str, click.Command] = {}
    for entry in entry_points(group=GROUP) if found is None else found:
        try:
            added = list(entry.load())
        except ImportError as error:
            added = [_absent(entry.name, error)]
        commands.update({command.name or entry.name: command for command in added})
    return commands


def _absent(name: str, error: ImportError) -> click.Command:
    missing = f"`shoal {name}` cannot run here: {error}. Install what it needs: pip install 'shoal[{name}]'"

    @click.command(
        name,
        help=f"Not installed: pip install 'shoal[{name}]' ({error})",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def absent() -> None:
        raise ConfigurationError(missing)

    return absent
