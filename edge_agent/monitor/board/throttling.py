"""Why a Jetson board runs slower than it could: over-current and under-voltage counters, and cooling devices."""

from __future__ import annotations

from edge_agent.monitor.board.system_files import SystemFiles

_HWMON = "sys/class/hwmon/hwmon*"
_COOLING = "sys/class/thermal/cooling_device*"
# Of Orin and Thor; the counters go up by each event, after which the hardware slows the clocks down for a while
# (NVIDIA Jetson Linux Developer Guide, "Jetson Orin Nano Series ...", over-current event status).
_COUNTERS = {
    "oc1_event_cnt": "under-voltage",
    "oc2_event_cnt": "average over-current",
    "oc3_event_cnt": "over-current",
}
# Cooling by slowing down. Fans cool without, and hot-surface-alert only warns (its trip point is at 70 C).
_SLOWS = ("cpufreq-", "devfreq-", "thermal-devfreq-", "thermal-cpufreq-")
_ALERT = "-throttle-alert"
_BALANCED = "-balanced"  # Nano and TX2


class Throttling:
    """Tells what has throttled the board since it was last asked."""

    def __init__(self, files: SystemFiles) -> None:
        self._files = files
        self._counters: dict[str, str] = {}
        self._counts: dict[str, float] = {}
        self._cooling: dict[str, str] = {}
        self.look()

    def look(self) -> None:
        """Find what there is to read: drivers may come up after the agent."""
        files = self._files
        for folder in files.find(_HWMON):
            if (files.text(f"{folder}/name") or "").startswith("soctherm_oc"):
                self._counters = {f"{folder}/{name}": reason for name, reason in _COUNTERS.items()}
        found = {folder: _slowed(files.text(f"{folder}/type") or "") for folder in files.find(_COOLING)}
        self._cooling = {f"{folder}/cur_state": part for folder, part in found.items() if part}

    def read(self) -> tuple[str, ...]:
        """The reasons; counts from before the first call tell of the past and are no reason."""
        reasons: dict[str, None] = {}
        for path, reason in self._counters.items():
            count = self._files.number(path)
            if count is None:
                continue
            if count > self._counts.get(path, count):
                reasons[reason] = None
            self._counts[path] = count
        for path, part in self._cooling.items():
            if (self._files.number(path) or 0) > 0:
                reasons[f"temperature ({part})"] = None
        return tuple(reasons)


def _slowed(kind: str) -> str:
    """The part that a cooling device slows down; empty for a fan."""
    kind = kind.lower()
    if kind.endswith((_ALERT, _BALANCED)):
        return kind.rsplit("-throttle-alert", 1)[0].rsplit("-balanced", 1)[0]
    if kind.startswith(_SLOWS):
        return "gpu" if "gpu" in kind or "ga10b" in kind or "devfreq" in kind else "cpu"
    return ""
