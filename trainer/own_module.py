"""How a module of ours is started as a process: ours, whatever lies in the folder that one happens to be in."""

from __future__ import annotations

import sys


def own_module(module: str, *arguments: str) -> list[str]:
    """The command line of a module, in this very interpreter.

    ``python -m`` looks into the current folder first: a ``trainer/`` or ``edge_agent/`` there would be run instead of
    ours. With ``-P`` it does not; what is installed or in ``PYTHONPATH`` is found as ever.
    """
    return [sys.executable, "-P", "-m", module, *arguments]
