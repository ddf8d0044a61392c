"""``tegrastats``, NVIDIA's own reader on Jetson boards: for what no file tells to who is not root.

It prints one line per interval, whose fields differ by board and by JetPack. The forms that are read here:

- ``RAM 534/3964MB``;
- ``GR3D_FREQ 62%@306``, ``45%``, ``0%@[305,305]`` (a clock per cluster), ``@[1574]`` where it does not know the load;
- ``GPU@43C``, ``gpu@43.5C`` and, from JetPack 7, ``gpu@43.5C/44C`` with the highest; ``-256C`` for what is off;
- ``VDD_IN 4067/4067`` (JetPack 4), ``VDD_IN 4067mW/4067mW`` (5, 6), ``.../4100mW`` (7): now, mean, highest.
"""

from __future__ import annotations

import logging
import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

_RAM = re.compile(r"\bRAM (\d+)/(\d+)MB\b")
_GPU = re.compile(r"\bGR3D_FREQ (?:(\d+)%)?(?:@\[?(\d+))?")
_TEMPERATURE = re.compile(r"(?<![\w%])([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C(?=[\s/]|$)")
_RAIL = re.compile(
    r"(?<!\S)([A-Z][A-Z0-9_]*) (\d+)(?:mW)?(?:/\d+(?:mW)?){1,2}(?=\s|$)|(?<!\S)([A-Z][A-Z0-9_]*) (\d+)mW"
)
_OFF_C = -200.0
_RESTART_S = 60.0
_FRESH_S = 5.0
_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tegrastats:
    """One line; None where it does not say.

    Args:
        temperatures_c: By name of the zone, as printed.
        rails_w: Watts now, by name of the rail.
    """

    ram_used_bytes: int | None = None
    ram_total_bytes: int | None = None
    gpu_busy_percent: float | None = None
    gpu_clock_mhz: float | None = None
    temperatures_c: dict[str, float] = field(default_factory=dict)
    rails_w: dict[str, float] = field(default_factory=dict)


def parse(line: str) -> Tegrastats | None:
    """What a line says; None for one that is not of tegrastats."""
    ram = _RAM.search(line)
    if ram is None:
        return None
    gpu = _GPU.search(line)
    busy, clock = gpu.groups() if gpu else (None, None)
    temperatures = {name: float(value) for name, value in _TEMPERATURE.findall(line)}
    rails: dict[str, float] = {}
    for name, milliwatts, name_alone, milliwatts_alone in _RAIL.findall(line):
        if (name or name_alone) != "NC":
            rails[name or name_alone] = int(milliwatts or milliwatts_alone) / 1000
    return Tegrastats(
        ram_used_bytes=int(ram[1]) << 20,
        ram_total_bytes=int(ram[2]) << 20,
        gpu_busy_percent=float(busy) if busy else None,
        gpu_clock_mhz=float(clock) if clock else None,
        temperatures_c={name: value for name, value in temperatures.items() if value > _OFF_C},
        rails_w=rails,
    )


class TegrastatsProcess:
    """A ``tegrastats`` that runs for as long as it is wanted; one that ends is started again, once a minute at most.

    Args:
        program: Its path.
        interval_ms: Between lines.
        clock: Seconds that never go back.
    """

    def __init__(self, program: str, *, interval_ms: int = 1000, clock: Callable[[], float] = time.monotonic) -> None:
        self._command = [program, "--interval", str(interval_ms)]
        self._clock = clock
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._started_s: float | None = None
        self._latest: tuple[float, Tegrastats] | None = None
        self._is_told = False

    def latest(self) -> Tegrastats | None:
        """The newest line, if it is a few seconds old at most; starts the program where it does not run."""
        now = self._clock()
        if (self._process is None or self._process.poll() is not None) and (
            self._started_s is None or now - self._started_s >= _RESTART_S
        ):
            self._start(now)
        latest = self._latest
        return latest[1] if latest is not None and now - latest[0] <= _FRESH_S else None

    def close(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._reader is not None:  # left behind where a child of the program still holds its output
            self._reader.join(_PATIENCE_S)

    def _start(self, now: float) -> None:
        self.close()
        self._started_s = now
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
        except OSError as error:
            self._tell(f"does not start: {error.strerror}")
            return
        self._reader = threading.Thread(target=self._read, args=(self._process,), name="tegrastats", daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        if process.stdout is None:
            return
        with process.stdout as lines:  # closed here and by nobody else: who closes a pipe that is read from waits
            for line in lines:
                found = parse(line)
                if found is not None:
                    self._latest = (self._clock(), found)
                elif line.strip():
                    self._tell(f"prints a line that nobody knows: {line.strip()[:80]!r}")

    def _tell(self, why: str) -> None:
        if not self._is_told:
            self._is_told = True
            log.warning("%s %s; what it alone would tell is reported as unknown", self._command[0], why)
