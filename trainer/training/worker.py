"""One of the processes that train: ``python -m trainer.training.worker FOLDER``, started by torchrun or the like.

Which one it is, it reads from ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``. It ends
with status 0 when the training is finished, with 3 where starting it again would not help, and in any other way where
it would: who starts it may then start the whole group anew, and it goes on from the last checkpoint.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

# Set by who started the group, and holds the other end of its standard input: with it the group ends.
DRIVER_ON_STDIN = "SHOAL_TRAINING_DRIVER_ON_STDIN"
NO_USE = 3
_HUNG = 70
_LEFT_ALONE = 75
_JOB_WAIT_S = 600.0


def main(folder: Path) -> int:
    """Train as one process of the job in ``folder``."""
    if os.environ.get(DRIVER_ON_STDIN):
        threading.Thread(target=_end_with_driver, name="driver-watch", daemon=True).start()
    if (folder / "error.json").exists():  # before torch, whose import takes seconds
        return NO_USE
    _wait_for(folder / "job.json")

    from edge_agent.contract.errors import ShoalError
    from trainer.training.checkpoints import Checkpoints
    from trainer.training.job import CHECKPOINTS_FOLDER, ProgressLine, failure_of, leave_failure, read_job, say
    from trainer.training.loop import PeerLost, Place, learn
    from trainer.training.watch import StallWatch

    place = Place(
        rank=int(os.environ.get("RANK", "0")),
        world=int(os.environ.get("WORLD_SIZE", "1")),
        device=int(os.environ.get("LOCAL_RANK", "0")),
        address=os.environ.get("MASTER_ADDR", "127.0.0.1"),
        port=int(os.environ.get("MASTER_PORT", "0")),
    )
    checkpoints = Checkpoints(folder / CHECKPOINTS_FOLDER)
    if checkpoints.finished() is not None:
        return 0

    def progress(fraction: float, message: str, metrics: object) -> None:
        if place.rank == 0:
            say(folder, ProgressLine(fraction, message, dict(metrics)))  # type: ignore[call-overload]

    def hung(complaint: str) -> None:
        from trainer.errors import RecipeHung

        leave_failure(folder, failure_of(RecipeHung(complaint)))
        os._exit(_HUNG)

    try:
        job = read_job(folder)
        watch = StallWatch(job.plan.step_timeout_s, hung=hung)
        learn(job, place=place, checkpoints=checkpoints, progress=progress, watch=watch)
    except PeerLost as error:
        print(f"rank {place.rank}: {error}", file=sys.stderr)  # noqa: T201 - the log of the group
        # Not through Python's own end: the communicator's threads wait for a peer that is gone.
        sys.stderr.flush()
        os._exit(1)
    except ShoalError as error:
        leave_failure(folder, failure_of(error))
        print(f"rank {place.rank}: {error}", file=sys.stderr)  # noqa: T201 - the log of the group
        sys.stderr.flush()
        os._exit(NO_USE)
    return 0


def _end_with_driver() -> None:
    """A driver that is gone leaves nobody to train for; its successor starts a group of its own."""
    while os.read(0, 1024):
        pass
    os._exit(_LEFT_ALONE)


def _wait_for(path: Path) -> None:
    """On other machines the group may be started before the job is written."""
    end = time.monotonic() + _JOB_WAIT_S
    while not path.exists():
        if time.monotonic() > end:
            raise SystemExit(f"{path}: not there after {_JOB_WAIT_S:g} s; is the folder shared between the machines?")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
