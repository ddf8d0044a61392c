"""One program at a time on a state folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from edge_agent.contract.errors import ConfigurationError, DeviceError, storage_error

LOCK_FILE = "agent.lock"


def lock_state(state: Path, *, way_out: str = "stop it, or give --state") -> IO[bytes]:
    """Hold the state folder until the file is closed: two programs would number messages against each other.

    Args:
        way_out: What whoever asks can do where it is held.
    Raises:
        ConfigurationError: Another program, an agent or one that has loaded a model with this state, holds it.
        DeviceError: The lock cannot be made.
    """
    path = state / LOCK_FILE
    try:
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
    except OSError as error:
        raise storage_error(error, str(path)) or DeviceError(f"{path}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigurationError(
            f"{state}: another agent, or a program that has loaded a model with it, uses this state folder; {way_out}"
        ) from error
    return file
