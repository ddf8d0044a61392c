"""How many processors this process may keep busy: its cpuset, and the quota of its control group."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def available() -> int:
    """Processors that this process may use, at least 1."""
    quota = quota_cpus(_OWN_GROUPS, _GROUPS)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus if quota is None else min(cpus, math.ceil(quota)))


def quota_cpus(own_groups: Path, mount: Path) -> float | None:
    """Processors' worth of time that the control groups allow (``cpu.max``; ``cpu.cfs_quota_us`` of version 1).

    Args:
        own_groups: As ``/proc/self/cgroup``: lines ``number:controllers:path``.
        mount: As ``/sys/fs/cgroup``. In a container the path of the group may not exist below it: its root is then
            the container's own group.
    Returns:
        The tightest of the group and those around it; None where none limits.
    """
    try:
        lines = own_groups.read_text().splitlines()
    except OSError:
        return None
    limits: list[float] = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            limits += _limits(mount, path, _version_2) + _limits(mount / "unified", path, _version_2)
        elif "cpu" in controllers.split(","):
            limits += _limits(mount / controllers, path, _version_1) + _limits(mount / "cpu", path, _version_1)
    return min(limits, default=None)


def _limits(mount: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    """The limits of a group and of all groups around it."""
    group = mount / path.strip("/")
    found = [read(folder) for folder in (group, *group.parents) if folder == mount or mount in folder.parents]
    return [limit for limit in found if limit is not None]


def _version_2(folder: Path) -> float | None:
    return _share(_words(folder / "cpu.max"))


def _version_1(folder: Path) -> float | None:
    return _share(_words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us"))


def _share(words: list[str]) -> float | None:
    """``max 100000`` (version 2) and ``-1 100000`` (version 1) set no limit."""
    try:
        quota, period = int(words[0]), int(words[1])
    except (IndexError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
