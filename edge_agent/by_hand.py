"""Models put on a device and taken from it by hand while no agent runs, as on devices without a fleet."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edge_agent.contract.errors import ConfigurationError, ModelUnavailable
from edge_agent.contract.manifest import Manifest
from edge_agent.identity import read_identity
from edge_agent.runtime.loaded import load
from edge_agent.runtime.package import Package
from edge_agent.runtime.slots import Slots
from edge_agent.state_lock import lock_state
from edge_agent.update.installer import Installer

_log = logging.getLogger(__name__)


class Installed(NamedTuple):
    """What an installation by hand has changed.

    Args:
        before: The version that was active, empty where none was or its package cannot be read.
        is_same: Whether it was this very package.
    """

    manifest: Manifest
    before: str
    is_same: bool


def install(state: Path, folder: Path) -> Installed:
    """Install the package in ``folder`` in place of the one that is active, which is kept to go back to.

    Raises:
        PackageError, DigestMismatch: The package is wrong, or fails its self-test.
        ConfigurationError: An agent runs on this state folder, the fleet decides about the model, or the package is a
            pipeline whose steps are not installed.
    """
    with _installer(state) as (installer, slots):
        package = Package.open(folder, verify=False)
        name = package.manifest.name
        before = next((each.version for each in installer.installed() if each.name == name and each.active), "")
        if package.manifest.pipeline:
            installer.start()  # its self-test runs its steps
        try:
            was = installer.preinstall(folder)
        except ModelUnavailable as error:
            raise ConfigurationError(
                f"{error}. Install the steps of '{name}' first, or put the folders of all these packages into the "
                "folder runtime.models of the agent's settings"
            ) from error
        return Installed(slots.get(name).manifest, before, was == package.digest)


def remove(state: Path, model: str) -> None:
    """Remove a model that was installed by hand, with its packages.

    Raises:
        ConfigurationError: An agent runs on this state folder, no such model is installed, or the fleet decides.
    """
    with _installer(state) as (installer, _):
        installer.remove(model)


@contextlib.contextmanager
def _installer(state: Path) -> Iterator[tuple[Installer, Slots]]:
    lock = lock_state(state)
    slots = Slots()
    try:
        loading = functools.partial(load, slots=slots)
        installer = Installer(state, read_identity(state), slots, lambda event: _log.info("%s", event), loading)
        try:
            yield installer, slots
        finally:
            installer.close()
    finally:
        slots.close()
        lock.close()
