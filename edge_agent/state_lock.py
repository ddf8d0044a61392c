"""One program at a time on a state folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from edge_agent.contract.errors import ConfigurationError, DeviceError, storage_error

LOCK_FILE = "agent.lock"


def lock_state(state: Path) -> IO[bytes]:
    """Hold the state folder until the file is closed: two programs would number messages against each other.

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
            f"{state}: another agent runs on this state folder; stop it, or give --state"
        ) from error
    return file
