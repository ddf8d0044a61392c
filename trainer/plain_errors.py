"""How the trainer's commands end when something is wrong: one line that says what to do, and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import click

from edge_agent.contract.errors import ShoalError, storage_error

_P = ParamSpec("_P")


def plainly(command: Callable[_P, None]) -> Callable[_P, None]:
    """Say an error of ours, a full disk or a missing permission in a sentence instead of a traceback."""

    @wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ShoalError as error:
            _end(error)
        except OSError as error:
            known = storage_error(error, str(error.filename or "a file"))
            if known is None:
                raise
            _end(known)

    return run


def _end(error: ShoalError) -> None:
    click.echo(f"shoal: {error}", err=True)
    sys.exit(error.exit_code)
