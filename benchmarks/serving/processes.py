"""A server process on a core of its own: started, measured, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil


class ServerEnded(Exception):
    """The server ended by itself or never answered; the text holds the end of its log."""


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Run this thread, and what it starts, on one core; None leaves it as it is."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class ServerProcess:
    """A running server with all its child processes.

    Args:
        core: Where it runs, children included.
        log: File that takes what it prints.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        core: int,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._log = log
        with on_core(core), log.open("wb") as output:
            self._begin = time.perf_counter()
            # A session of its own, so that children that outlive their parent are still found and ended.
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}, cwd=cwd,
                start_new_session=True,
            )  # fmt: skip
        self.start_s = 0.0

    def wait_for(self, answers: Callable[[], bool], *, timeout_s: float = 90.0) -> None:
        """Wait until the server answers rightly; ``start_s`` is then the time from its start to that answer.

        Raises:
            ServerEnded: It ended, or never answered.
        """
        until, why = time.monotonic() + timeout_s, "no answer yet"
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise ServerEnded(f"ended with {self._process.returncode}: {self.log_tail()}")
            try:
                if answers():
                    self.start_s = time.perf_counter() - self._begin
                    return
                why = "a wrong answer"
            except (OSError, ValueError) as error:
                why = str(error)
            time.sleep(0.002)
        raise ServerEnded(f"no right answer within {timeout_s:.0f} s ({why}): {self.log_tail()}")

    def log_tail(self, lines: int = 4) -> str:
        """The last lines that it printed."""
        return " | ".join(self._log.read_text(errors="replace").strip().splitlines()[-lines:])[-600:]

    def rss_mb(self) -> float:
        """Resident memory in MB: that of its largest process, and of the others what they share with nobody.

        So a server of several processes does not pay twice for its libraries, and one of a single process pays for
        all of them, whoever else on this machine has them loaded.
        """
        found = [_memory_bytes(process) for process in self._all()]
        largest = max(range(len(found)), key=lambda at: found[at][0], default=0)
        return sum(rss if at == largest else own for at, (rss, own) in enumerate(found)) / 1e6

    def cpu_s(self) -> float:
        """Processor time that all its processes have used so far, in the system as well."""
        return sum(_cpu_s(process) for process in self._all())

    @property
    def pid(self) -> int:
        """Of the first process."""
        return self._process.pid

    def stop(self, timeout_s: float = 10.0) -> None:
        """End it and its children."""
        everyone = self._all()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(timeout_s)

    def _all(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


class CoreClock:
    """How long a core was busy, whoever kept it so; 0 where the kernel does not tell."""

    def __init__(self, core: int) -> None:
        self._core = core

    def busy_s(self) -> float:
        """Seconds since the start of the machine, time that a hypervisor took away included."""
        try:
            lines = Path("/proc/stat").read_text().splitlines()
        except OSError:
            return 0.0
        fields = next((line.split() for line in lines if line.startswith(f"cpu{self._core} ")), [])
        # user, nice, system, idle, iowait, irq, softirq, steal
        return sum(int(field) for at, field in enumerate(fields[1:9]) if at not in (3, 4)) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cpu_s(process: psutil.Process) -> float:
    """By the scheduler's count in nanoseconds where the kernel tells it; else in clock ticks of 10 ms."""
    try:
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        pass  # another kernel, or a thread has ended
    try:
        times = process.cpu_times()
        return float(times.user + times.system)
    except psutil.NoSuchProcess:
        return 0.0


def _memory_bytes(process: psutil.Process) -> tuple[int, int]:
    """RSS of a process, and what of it is its own (USS; the RSS where the kernel does not tell)."""
    try:
        rss = int(process.memory_info().rss)
        try:
            return rss, int(process.memory_full_info().uss)
        except psutil.AccessDenied:
            return rss, rss
    except psutil.NoSuchProcess:
        return 0, 0
