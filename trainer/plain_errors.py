"""How the trainer's commands end when something is wrong: one line that says what to do, and an exit status."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import click

from edge_agent.contract.errors import ShoalError, storage_error

_P = ParamSpec("_P")


def plainly(command: Callable[_P, None]) -> Callable[_P, None]:
    """Say an error of ours, a full disk or a missing permission in a sentence instead of a traceback.

    Where the command has an option ``--debug``, it is taken here, and shows the traceback too.
    """

    @wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        debug = kwargs.pop("debug", False)
        try:
            command(*args, **kwargs)
        except ShoalError as error:
            _end(error, error, debug=bool(debug))
        except OSError as error:
            known = storage_error(error, str(error.filename or "a file"))
            if known is None:
                raise
            _end(known, error, debug=bool(debug))

    return run


def _end(error: ShoalError, cause: BaseException, *, debug: bool) -> None:
    if debug:
        traceback.print_exception(cause)
    click.echo(f"shoal: {error}", err=True)
    sys.exit(error.exit_code)
