"""A program that rotates keys again and again, and is ended at one more change of the disk each time.

Run with the key folder to copy and a folder for the copies; prints one line for each copy that was left behind.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from trainer.publish.cli import keys_commands

_KILLED = 137


def dies_after(changes: int) -> None:
    """End this process, as a power cut would, before the change of the disk after so many."""
    left = changes

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                os._exit(_KILLED)
            left -= 1
            return call(*args, **kwargs)

        return wrapped

    for name in ("rename", "replace", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))


def main() -> None:
    """Rotate in copies of a folder until one is not killed."""
    original, copies = Path(sys.argv[1]), Path(sys.argv[2])
    for changes in range(1_000):
        folder = copies / str(changes)
        shutil.copytree(original, folder)
        child = os.fork()
        if child == 0:
            dies_after(changes)
            result = CliRunner().invoke(keys_commands, ["revoke", str(folder), *sys.argv[3:]])
            os._exit(result.exit_code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(folder, flush=True)  # noqa: T201 - this is what it is asked for
        if status != _KILLED:
            sys.exit(status)


if __name__ == "__main__":
    main()
