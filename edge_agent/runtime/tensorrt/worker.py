"""The build worker: ``python -m edge_agent.runtime.tensorrt.worker ORDER.json PARENT_PID NICE``.

Does one job and says so in JSON lines on its standard output; what TensorRT prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec
import psutil

from edge_agent.contract.errors import EngineBuildCancelled, EngineBuildFailed, ShoalError
from edge_agent.runtime.tensorrt.build import build_engine, refit_engine
from edge_agent.runtime.tensorrt.graph_hash import inspect_graph
from edge_agent.runtime.tensorrt.job import BuildJob, EngineFacts, Failure, GraphFacts, Job, Line, Progress, RefitJob

# prctl(2): the signal that this process gets when its parent dies.
_PR_SET_PDEATHSIG = 1
# Out of 1000 (proc(5)): when memory runs short, the system ends the build and not what serves.
_OOM_SCORE = "900"
# A large network has ten thousand short phases.
_TELL_EVERY_S = 0.2


def main() -> int:
    """Do the job that the command line names."""
    order, parent, nice = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    lines = _take_output()
    if not _follow_parent(parent):
        return 1
    _give_way(nice)
    stop = _listen_for_stop()
    job = msgspec.json.decode(order.read_bytes(), type=Job)
    try:
        lines.say(_do(job, lines, stop, order.parent))
    except EngineBuildCancelled as error:
        lines.say(Failure(text=str(error), is_cancelled=True))
    except EngineBuildFailed as error:
        lines.say(Failure(text=str(error), is_final=error.is_final))
    except ShoalError as error:
        lines.say(Failure(text=str(error)))
    except MemoryError:
        lines.say(Failure(text="the build worker has no memory left"))
    return 0


def _do(job: Job, lines: _Lines, stop: threading.Event, place: Path) -> EngineFacts | GraphFacts:
    if isinstance(job, BuildJob):
        return build_engine(job, lines.tell, stop, place)
    if isinstance(job, RefitJob):
        return refit_engine(job, lines.tell, stop, place)
    return inspect_graph(Path(job.model))


class _Lines:
    """What the agent is told, a line each, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._lock = descriptor, threading.Lock()
        self._percent, self._told_at = -1.0, 0.0

    def tell(self, phase: str, share: float) -> None:
        """How far it is; a share that falls counts as the highest before. Phases of no length are left out."""
        percent, now = max(self._percent, round(share * 100, 1)), time.monotonic()
        if percent >= self._percent + 1 or now > self._told_at + _TELL_EVERY_S:
            self._percent, self._told_at = percent, now
            self.say(Progress(phase=phase, percent=percent))

    def say(self, line: Line) -> None:
        data = msgspec.json.encode(line) + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]


def _take_output() -> _Lines:
    """Standard output for our lines alone: libraries print to descriptor 1, which becomes standard error."""
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return _Lines(descriptor)


def _follow_parent(parent: int) -> bool:
    """Die with the agent; False where it is gone already."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: the agent ends it where it can
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def _give_way(nice: int) -> None:
    """Leave processor, disk and memory to what serves, as far as the system lets an ordinary user say so."""
    with contextlib.suppress(OSError):
        os.nice(nice)
    with contextlib.suppress(psutil.Error, OSError, AttributeError):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def _listen_for_stop() -> threading.Event:
    """An event that SIGTERM sets. A thread waits for it: a handler would only run once TensorRT returns."""
    stop = threading.Event()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        signal.sigwait({signal.SIGTERM})
        stop.set()

    threading.Thread(target=wait, name="stop", daemon=True).start()
    return stop


if __name__ == "__main__":
    sys.exit(main())
