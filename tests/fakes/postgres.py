"""A real PostgreSQL of a test's own, on a unix socket in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def postgres(initdb: Path, server: Path) -> Iterator[str]:
    """Gives the SQLAlchemy URL of an empty database; it ends with the block."""
    folder = Path(tempfile.mkdtemp(prefix="shoal-pg-"))
    user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    if user is not None:
        shutil.chown(folder, user)
    quiet = subprocess.DEVNULL
    subprocess.run(
        [initdb, "-D", folder / "data", "-U", "shoal", "--auth=trust", "--no-sync"], check=True, user=user, stdout=quiet
    )
    process = subprocess.Popen(
        [server, "-D", folder / "data", "-k", folder, "-c", "listen_addresses=", "-F"],
        user=user,
        stdout=quiet,
        stderr=quiet,
    )
    try:
        # The last line of its lock file says "ready" once it takes connections.
        deadline = time.monotonic() + 30
        while not _ready(folder / "data" / "postmaster.pid"):
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            assert process.poll() is None, f"PostgreSQL ended with {process.returncode}"
            time.sleep(0.05)
        yield f"postgresql+psycopg://shoal@/postgres?host={folder}"
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


def _ready(lock_file: Path) -> bool:
    return lock_file.exists() and lock_file.read_text().rstrip().endswith("ready")
