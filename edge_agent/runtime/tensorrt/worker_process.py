"""One run of the build worker: started, listened to, held to its memory, broken off, and its end explained."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from edge_agent.contract.errors import EngineBuildCancelled, EngineBuildFailed, storage_error
from edge_agent.runtime.tensorrt.job import EngineFacts, Failure, GraphFacts, Job, Line, Progress

_WORKER = "edge_agent.runtime.tensorrt.worker"
# How often memory and cancellation are looked at; a build takes seconds to minutes.
_TICK_S = 0.1
_LAST_WORDS_BYTES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerLimits:
    """What a worker may take.

    Args:
        memory_bytes: Most memory of its own, files mapped left out; 0 sets no limit.
        nice: Priority of its processor time; 19 is the least.
        grace_s: From asking it to stop until it is killed: TensorRT looks between its steps, not within one.
    """

    memory_bytes: int = 0
    nice: int = 10
    grace_s: float = 5.0


@dataclasses.dataclass(frozen=True)
class Finished:
    """A worker that did what it was asked."""

    result: EngineFacts | GraphFacts
    peak_bytes: int


def run_worker(
    job: Job,
    place: Path,
    limits: WorkerLimits,
    on_progress: Callable[[Progress], None] | None,
    cancelled: threading.Event,
) -> Finished:
    """Run one job to its end.

    The worker ends with this thread, should it die, so that none is left behind.

    Args:
        place: An empty folder, for the order and for what the worker writes on its standard error.
    Raises:
        EngineBuildFailed: It failed, crashed, or had to be killed; the text says which and quotes its last words.
        EngineBuildCancelled: ``cancelled`` was set; the worker has ended.
        StorageFull, StorageNotWritable: The order could not be written.
    """
    if cancelled.is_set():
        raise EngineBuildCancelled("broken off before it began")
    order, words = place / "order.json", place / "stderr.txt"
    command = [sys.executable, "-m", _WORKER, str(order), str(os.getpid()), str(limits.nice)]
    # The same modules as ours, wherever they were found.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        order.write_bytes(msgspec.json.encode(job))
        with words.open("wb") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=place,
                start_new_session=True,  # a Ctrl-C is for the agent, which then ends its build
            )
    except OSError as error:
        raise storage_error(error, str(place)) or EngineBuildFailed(f"no build worker: {error}") from error
    with process:
        watch = _Watch(process, limits, cancelled, on_progress)
        try:
            watch.until_end()
        finally:
            if process.poll() is None:
                process.kill()
    return watch.outcome(_last_words(words))


class _Watch:
    """What one worker says and takes, until it ends."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        limits: WorkerLimits,
        cancelled: threading.Event,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._process, self._limits, self._cancelled = process, limits, cancelled
        self._on_progress = on_progress
        self._decoder = msgspec.json.Decoder(Line)
        self._pending = b""
        self._last: EngineFacts | GraphFacts | Failure | None = None
        self._ending_since: float | None = None
        self._peak_bytes = 0
        self._is_too_large = False

    def until_end(self) -> None:
        """Listen until the worker closes its output, then wait for its end."""
        output = self._process.stdout
        if output is None:
            return
        os.set_blocking(output.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while True:
                if selector.select(_TICK_S) and not self._read(output):
                    break
                self._look()
        while self._process.poll() is None:
            self._look()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_TICK_S)

    def outcome(self, last_words: str) -> Finished:
        """What the worker's end means.

        Raises:
            EngineBuildFailed, EngineBuildCancelled: See :func:`run_worker`.
        """
        status, last = self._process.returncode, self._last
        if isinstance(last, (EngineFacts, GraphFacts)):
            return Finished(last, self._peak_bytes)  # it is on the disk by then: TensorRT may well crash on its way out
        if self._is_too_large:
            raise EngineBuildFailed(
                f"the build worker took {self._peak_bytes >> 20} MiB, its limit is "
                f"{self._limits.memory_bytes >> 20} MiB; raise accelerator.build_memory_mib, or take smaller batches"
            )
        if self._cancelled.is_set():
            raise EngineBuildCancelled("the build was broken off")
        if isinstance(last, Failure):
            kind = EngineBuildCancelled if last.is_cancelled else EngineBuildFailed
            raise kind(last.text, is_final=last.is_final)
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        raise EngineBuildFailed(f"the build worker {how}{': ' if last_words else ''}{last_words}")

    def _read(self, output: IO[bytes]) -> bool:
        data = os.read(output.fileno(), 1 << 16)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            try:
                said = self._decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise EngineBuildFailed(f"the build worker wrote {line[:100]!r}, which is no line of ours") from error
            if not isinstance(said, Progress):
                self._last = said
            elif self._on_progress is not None:
                self._on_progress(said)
        return bool(data)

    def _look(self) -> None:
        """Hold it to its memory, pass a cancellation on, and wait for its end only so long."""
        taken_bytes = _own_bytes(self._process.pid)
        self._peak_bytes = max(self._peak_bytes, taken_bytes)
        if 0 < self._limits.memory_bytes < taken_bytes:
            self._is_too_large = True
            self._process.kill()
        if self._last is None and not self._cancelled.is_set():
            return
        if self._ending_since is None:
            self._ending_since = time.monotonic()
            self._process.terminate()
        elif time.monotonic() - self._ending_since > self._limits.grace_s:
            self._process.kill()


def _own_bytes(pid: int) -> int:
    """Memory that is the process's own: anonymous or shared, but no mapped file, which the system can drop."""
    total_kib = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total_kib += int(line.split()[1])
    except (OSError, ValueError):  # ended meanwhile
        return 0
    return total_kib << 10


def _last_words(file: Path) -> str:
    try:
        text = file.read_bytes()[-_LAST_WORDS_BYTES:].decode(errors="replace").strip()
    except OSError:
        return ""
    return " | ".join(line.strip() for line in text.splitlines()[-3:])
