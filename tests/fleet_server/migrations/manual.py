"""What docs/operations.md tells an operator to type."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path


def block(repository: Path, language: str) -> str:
    """The one block in this language of what the page says of the server."""
    page = (repository / "docs" / "operations.md").read_text().partition("\n## The agent\n")[0]
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    return str(found)


def go_back(repository: Path, data: Path, revision: str) -> None:
    """The way back to the copy of before an upgrade, word for word."""
    environment = {**os.environ, "DATA": str(data), "REVISION": revision}
    subprocess.run(["bash", "-eu", "-c", block(repository, "sh")], check=True, env=environment, timeout=60)
