"""Which package answers a job: a folder, or what the fleet server knows under a name, brought here once."""

from __future__ import annotations

from pathlib import Path

from edge_agent.contract.batch import ModelChoice
from edge_agent.contract.errors import ConfigurationError
from edge_agent.runtime.package import Package
from trainer.batch.errors import InputUnreadable
from trainer.server_client import ServerClient

CHAMPION = "champion"
_SHORTEST_DIGEST = 8


def chosen_digest(choice: ModelChoice, client: ServerClient) -> str:
    """The digest of the package that a job's model is now.

    Raises:
        InputUnreadable: The server has no such model, version or digest.
        ServerRefused, NetworkError: The server refuses, or is away.
    """
    assert choice.name is not None  # noqa: S101 - the job's own check
    found = client.released(choice.name)
    if found is None:
        raise InputUnreadable(f"the server has no model '{choice.name}'; `shoal models list` shows those it has")
    if choice.version == CHAMPION:
        if found.champion is None:
            raise InputUnreadable(f"model '{choice.name}' has no champion yet: publish a version, or name one")
        return found.champion
    for package in found.versions:
        long_enough = len(choice.version) >= _SHORTEST_DIGEST
        if package.version == choice.version or (long_enough and package.digest.startswith(choice.version)):
            return package.digest
    raise InputUnreadable(
        f"model '{choice.name}' has no version or digest {choice.version!r}; it has: "
        f"{', '.join(package.version for package in found.versions) or 'none'}"
    )


def fetch(choice: ModelChoice, client: ServerClient, packages: Path) -> Package:
    """The package, downloaded into ``packages/DIGEST`` where it is not there yet, every digest verified.

    Raises:
        InputUnreadable, ServerRefused, NetworkError, DigestMismatch: As :func:`chosen_digest` and the download say.
    """
    digest = chosen_digest(choice, client)
    folder = packages / digest
    return Package.open(folder, verify=True) if folder.exists() else client.download(digest, folder)


def local_package(choice: ModelChoice, folder: Path | None) -> Package:
    """The package of a job's own folder, or the one that a worker has brought.

    Raises:
        ConfigurationError: There is neither, or it is another model's.
        PackageError, DigestMismatch: It is damaged.
    """
    if choice.package is not None:
        return Package.open(Path(choice.package), verify=True)
    if folder is None:
        raise ConfigurationError(
            f"model '{choice.name}' lies on the fleet server: give its package folder, or the server"
        )
    package = Package.open(folder, verify=True)
    if package.manifest.name != choice.name:
        raise ConfigurationError(
            f"{folder}: is a package of '{package.manifest.name}', the job asks for '{choice.name}'"
        )
    return package
