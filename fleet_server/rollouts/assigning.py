"""From a package for some devices to what the director signs for each: the next release, and the device's hardware."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import sqlalchemy as sa

from edge_agent.contract.errors import ShoalError
from edge_agent.contract.messages import DesiredModel, Hardware
from edge_agent.contract.repository import AssignedHardware, Assignment, target_name
from fleet_server.database import Database
from fleet_server.devices import twin_store
from fleet_server.devices.tables import devices as devices_table
from fleet_server.models.records import PackageRecord
from fleet_server.updates.orders import Order

# What a device says of itself goes into metadata that it downloads again: neither long nor much.
_RUNTIMES = 16
_VERSION_CHARS = 64


class Director(Protocol):
    """Signs what each device is to install; :class:`fleet_server.updates.director.Director` is one."""

    def assign_many(self, orders: Sequence[Order]) -> dict[str, ShoalError]:
        """Name a package for each device, durably; gives what was wrong with single devices, which were left out."""

    def release_of(self, device: str, model: str) -> int:
        """The last release signed for a device and model; 0 where there was none."""

    def readdress(self, hardware: Mapping[str, AssignedHardware]) -> dict[str, ShoalError]:
        """Put these devices' hardware into what they were assigned, where it names other; gives what went wrong."""


class Assigner:
    """Signs for devices and announces it to them; who calls it says which package.

    Args:
        director: Signs first; what is announced is signed.
    """

    def __init__(self, db: Database, director: Director) -> None:
        self._db, self._director = db, director
        self._seen: dict[str, Hardware] = {}

    def sign(self, packages: Mapping[str, PackageRecord], rollout: str) -> tuple[dict[str, int], dict[str, Exception]]:
        """Have the director name a package for each device.

        Args:
            packages: By device.
        Returns:
            The release of each device for which it is signed, and what went wrong with the others.
        """
        orders: list[Order] = []
        failed: dict[str, Exception] = {}
        with self._db.read() as connection:
            twins = {one.name: one for one in twin_store.records(connection, list(packages))}
        for device, package in packages.items():
            twin = twins.get(device)
            wanted = twin.desired.get(package.model) if twin is not None else None
            try:
                signed = self._director.release_of(device, package.model)
            except ShoalError as error:
                failed[device] = error
                continue
            assignment = Assignment(
                device=device, release=max(wanted.release if wanted is not None else 0, signed) + 1, rollout=rollout,
                hardware=assigned_hardware(twin.hardware) if twin is not None else None,
            )  # fmt: skip
            target = target_name(package.model, package.version)
            orders.append(
                Order(
                    device=device, target=target, length=package.manifest_bytes, sha256=package.digest,
                    assignment=assignment,
                )
            )  # fmt: skip
        try:
            failed |= self._director.assign_many(orders)
        except (ShoalError, OSError) as error:  # the disk is full: nothing was signed
            failed |= dict.fromkeys((order.device for order in orders), error)
        return {one.device: one.assignment.release for one in orders if one.device not in failed}, failed

    def announce(
        self, connection: sa.Connection, device: str, package: PackageRecord, release: int, rollout: str
    ) -> None:
        """Write down that a device is to look for what was signed."""
        wanted = DesiredModel(version=package.version, package=package.digest, release=release, rollout=rollout)
        twin_store.set_desired_model(connection, device, package.model, wanted)

    def readdress(self) -> dict[str, Exception]:
        """Sign anew for devices that have reported other hardware since they were last looked at."""
        with self._db.read() as connection:
            rows = connection.execute(sa.select(devices_table.c.name, devices_table.c.hardware)).all()
        seen = {row.name: msgspec.convert(row.hardware, Hardware) for row in rows}
        changed = {name: assigned_hardware(one) for name, one in seen.items() if self._seen.get(name) != one}
        failed: dict[str, Exception] = {}
        try:
            failed |= self._director.readdress(changed)
        except (ShoalError, OSError) as error:
            failed |= dict.fromkeys(changed, error)
        self._seen = {name: one for name, one in seen.items() if name not in failed}
        return failed


def assigned_hardware(hardware: Hardware) -> AssignedHardware:
    """What a device is, as far as it is signed."""
    runtimes = {name[:_VERSION_CHARS]: hardware.runtimes[name][:_VERSION_CHARS] for name in sorted(hardware.runtimes)}
    return AssignedHardware(
        architecture=hardware.architecture, accelerator=hardware.accelerator,
        runtimes=dict(list(runtimes.items())[:_RUNTIMES]),
    )  # fmt: skip
