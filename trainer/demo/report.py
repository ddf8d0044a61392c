"""What the demo found, as a table for a person and as ``report.json`` for a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.table import Table


@dataclasses.dataclass(kw_only=True)
class DeviceReport:
    """One device: accuracy is over held-out digits, as its camera saw them at that time.

    Args:
        package_before, package: Which answered when the accuracy before, and recovered, was measured.
    """

    id: str
    accuracy_before: float
    accuracy_drifted: float
    accuracy_recovered: float = 0.0
    labels_used: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    requests: int = 0
    requests_failed: int = 0
    requests_failed_in_swap: int = 0
    package_before: str = ""
    package: str = ""

    @property
    def recovered(self) -> bool:
        """Whether at least two thirds of what was lost came back; a device that lost nothing has nothing to mend."""
        lost = self.accuracy_before - self.accuracy_drifted
        return self.accuracy_recovered - self.accuracy_drifted >= 2 / 3 * lost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """Something worth telling, and when it was, in seconds since the demo began."""

    at_s: float
    what: str


@dataclasses.dataclass(kw_only=True)
class Report:
    """The whole demo.

    Args:
        lost: Records that the server lacks in the end; ``duplicated``: that it has twice, or that nobody sent
            (:mod:`trainer.demo.accounts`).
        problems: Why ``ok`` is false, in words.
        story: What happened when, as it was said.
    """

    ok: bool
    wall_s: float
    requests_failed: int
    lost: int
    duplicated: int
    devices: list[DeviceReport]
    problems: list[str] = dataclasses.field(default_factory=list)
    story: list[Moment] = dataclasses.field(default_factory=list)


def judge(
    devices: list[DeviceReport], *, lost: int, duplicated: int, wall_s: float, problems: Sequence[str] = ()
) -> Report:
    """The verdict: every request answered, nothing lost or doubled, and every device right again by the new model.

    Args:
        problems: Found on the way.
    """
    failed = sum(device.requests_failed for device in devices)
    problems = [*problems, *[f"{failed} requests failed"] * bool(failed)]
    problems += [f"{lost} records were lost"] * bool(lost)
    problems += [f"{duplicated} records came twice"] * bool(duplicated)
    for device in devices:
        if device.accuracy_drifted >= device.accuracy_before - 0.05:
            problems.append(f"{device.id}: the changed world did no harm, so that nothing was shown")
        if not device.recovered:
            problems.append(
                f"{device.id}: accuracy {device.accuracy_before:.3f} fell to {device.accuracy_drifted:.3f} "
                f"and only came back to {device.accuracy_recovered:.3f}"
            )
        if device.package == device.package_before:
            problems.append(f"{device.id}: still answers with the model that it began with")
    if len({device.package for device in devices}) > 1:
        problems.append("the devices do not answer with one and the same model")
    return Report(
        ok=not problems, wall_s=round(wall_s, 1), requests_failed=failed, lost=lost, duplicated=duplicated,
        devices=devices, problems=problems,
    )  # fmt: skip


def write(report: Report, path: Path) -> None:
    """Write ``report.json``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def table(report: Report) -> Table:
    """The table at the end."""
    found = Table(title="The fleet: accuracy on held-out digits, and what it cost", title_justify="left")
    found.add_column("device", no_wrap=True)
    for name in ("before", "drifted", "recovered", "labels", "requests", "failed", "in swap", "KiB up", "KiB down"):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("package", no_wrap=True)
    for device in report.devices:
        found.add_row(
            device.id,
            f"{device.accuracy_before:.3f}",
            f"[red]{device.accuracy_drifted:.3f}",
            f"[{'green' if device.recovered else 'red'}]{device.accuracy_recovered:.3f}",
            str(device.labels_used),
            str(device.requests),
            str(device.requests_failed),
            str(device.requests_failed_in_swap),
            f"{device.bytes_up / 1024:.0f}",
            f"{device.bytes_down / 1024:.0f}",
            device.package[:12],
        )
    return found
