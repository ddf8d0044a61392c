"""Where the passphrases of persons' keys come from: a file, or the person at the keyboard."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import click

from trainer.publish.errors import SigningKeyError
from trainer.publish.keys import Ask


def from_file(path: Path) -> Ask:
    """The first line of a file, for every key.

    Raises:
        SigningKeyError: It cannot be read, others may read it, or it is empty.
    """
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise SigningKeyError(f"{path}: others than its owner may read it; chmod 600 {path}")
        lines = path.read_text().splitlines()
    except OSError as error:
        raise SigningKeyError(f"{path}: {error.strerror}") from error
    if not lines or not lines[0]:
        raise SigningKeyError(f"{path}: its first line is empty; write the passphrase there")
    return lambda _name, _new: lines[0]


def from_keyboard(*, for_new: bool) -> Ask:
    """Asked for once per person: all keys in one folder have the same.

    Args:
        for_new: Ask for those of keys that are made, too.
    """
    known: dict[str, str] = {}

    def ask(name: str, new: bool) -> str:
        if new and not for_new:
            return ""
        whose = name.rpartition("/")[0]
        if whose not in known:
            words = f"Passphrase for the new keys of {whose}" if new else f"Passphrase of {name}"
            known[whose] = click.prompt(words, hide_input=True, confirmation_prompt=new, err=True)
        return known[whose]

    return ask


def chosen(file: Path | None, *, prompt: bool = False) -> Ask | None:
    """What a command's options ask for. Without any, an encrypted key is asked for where a person is there.

    Args:
        prompt: Ask even where nothing is encrypted yet: for keys that are made.
    """
    if file is not None:
        return from_file(file)
    return from_keyboard(for_new=prompt) if prompt or sys.stdin.isatty() else None
