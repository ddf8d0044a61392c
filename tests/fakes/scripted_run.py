"""A run's process that does what its run file's options say: ``python -m tests.fakes.scripted_run RUNFILE ...``.

It learns by counting: each epoch is a line in a file among its checkpoints, which another attempt goes on from.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the run file; count; leave a result."""
    run = json.loads(Path(sys.argv[1]).read_text())
    given = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    work, checkpoints = Path(given["--work"]), Path(given["--checkpoints"])
    script: dict[str, Any] = run["options"].get("script", {})
    checkpoints.mkdir(exist_ok=True)
    if "trace" in script:  # who was there, for the test to look at
        with Path(script["trace"]).open("a") as file:
            file.write(f"{os.getpid()} {run['run']} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\n")
    if script.get("child"):
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        Path(script["trace"]).with_suffix(".child").write_text(str(child.pid))
    state = checkpoints / "epochs"
    begun = len(state.read_text().splitlines()) if state.exists() else 0
    epochs = script.get("epochs", 1)
    for epoch in range(begun, epochs):
        say("fit", epoch / epochs, f"epoch {epoch + 1} of {epochs}", loss=1.0 / (epoch + 1))
        sys.stderr.write(f"learning {epoch + 1}\n")
        time.sleep(script.get("epoch_s", 0.0))
        with state.open("a") as file:
            file.write(f"{epoch}\n")
    if script.get("exit"):
        sys.exit(script["exit"])
    result = {
        "fence": run["fence"],
        "state": script.get("state", "done"),
        "reasons": [f"began at {begun}, attempt {run['attempt']}"],
        "inputs": script.get("inputs"),
    }
    (work / "result.json").write_text(json.dumps(result))


def say(stage: str, fraction: float, message: str, **metrics: float) -> None:
    """A line of progress."""
    line = {"stage": stage, "fraction": fraction, "message": message, "metrics": metrics}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
