"""``shoal reproduce``: proof that a model's weights follow from its lineage."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import msgspec

from edge_agent.contract.errors import ConfigurationError
from edge_agent.runtime.package import Package
from trainer.errors import NotReproduced
from trainer.plain_errors import plainly
from trainer.recipe import Recipe, recipes_folder
from trainer.server_client import ReleasedPackage, ServerClient


@click.command("reproduce")
@click.argument("package")
@click.option("--lake", required=True, help="Folder or URI of the sample lake that it was trained on.")
@click.option(
    "--champion",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Package folder of the model that it was trained from, where no server is given.",
)
@click.option("--server", envvar="SHOAL_SERVER", show_envvar=True, help="Base URL of a fleet server that has it.")
@click.option("--token", envvar="SHOAL_TOKEN", show_envvar=True, help="A token of role trainer.")
@click.option(
    "--recipes",
    envvar="SHOAL_RECIPES",
    show_envvar=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of recipes; those that come with Shoal unless given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error too.")
@plainly
def reproduce_command(
    *,
    package: str,
    lake: str,
    champion: Path | None,
    server: str | None,
    token: str | None,
    recipes: Path | None,
    as_json: bool,
) -> None:
    """Train PACKAGE again from its lineage, and prove that its weights come out byte for byte.

    PACKAGE is a package folder; or, with a server, a model's name (what the fleet runs) or NAME@VERSION. The proof
    holds on the machine that trained it, or on one like it. Exit status 0: proved; 8: the weights differ, and what
    differs beside them is said.
    """
    from trainer.work.reproduce import reproduce

    with tempfile.TemporaryDirectory(prefix="shoal-reproduce-") as folder:
        work, fetched = Path(folder), _Packages(server, token, Path(folder) / "packages")
        found = fetched.named(package)
        parent = found.manifest.parent
        start = Package.open(champion, verify=True) if champion else None
        if parent is not None and start is None:
            start = fetched.by_digest(parent)
        recipe = Recipe.load(recipes_folder(recipes) / found.manifest.name)
        _say_lineage(found)
        proof = reproduce(
            found,
            recipe,
            lake,
            work / "work",
            start=start,
            report=lambda stage, share, message, *_: click.echo(f"{share:4.0%} {stage:<9} {message}", err=True),
        )
        fetched.close()
    if as_json:
        click.echo(msgspec.json.encode(proof.as_json()).decode())
    else:
        for each in proof.files:
            click.echo(f"  {'equal  ' if each.is_equal else 'DIFFERS'} {each.name:<18} sha256 {each.then}")
        for line in (*proof.weights, *(f"changed since: {line}" for line in proof.changed)):
            click.echo(f"  {line}")
    title = f"{found.manifest.name} {found.manifest.version}, package {found.digest}"
    if not proof.is_equal:
        raise NotReproduced(f"{title}: training again gave other bytes; {_blame(proof.changed)}")
    if not as_json:
        click.echo(f"proved: {title}, follows from its lineage, byte for byte")


def _say_lineage(package: Package) -> None:
    manifest, lineage = package.manifest, package.manifest.lineage
    versions = "?" if lineage.samples_version is None else f"{lineage.samples_version} and {lineage.labels_version}"
    rows = (lineage.content or lineage.dataset)[:12]
    for line in (
        f"{manifest.name} {manifest.version}, package {package.digest}",
        f"  recipe     {lineage.code_sha256[:12]}",
        f"  rows       {rows} (versions {versions} of samples and labels)",
        f"  start      {'package ' + manifest.parent[:12] if manifest.parent else 'scratch'}, seed {lineage.seed}",
        f"  libraries  {lineage.lock_sha256[:12]}",
    ):
        click.echo(line, err=True)


def _blame(changed: tuple[str, ...]) -> str:
    if changed:
        return "what has changed since: " + "; ".join(changed)
    return "nothing has changed that its lineage knows of: was it trained on another kind of machine?"


class _Packages:
    """Packages from folders, or from a fleet server where one is given."""

    def __init__(self, server: str | None, token: str | None, folder: Path) -> None:
        self._client = ServerClient(server, token) if server and token else None
        self._folder = folder

    def named(self, name: str) -> Package:
        """The package in a folder, or of a model on the server."""
        if Path(name).is_dir():
            return Package.open(Path(name), verify=True)
        model, _, version = name.partition("@")
        client = self._needed(f"{name}: no such folder; to take a model of that name from a fleet server")
        released = client.released(model)
        if released is None:
            raise ConfigurationError(f"{name}: neither a package folder nor a model of the server")
        versions: list[ReleasedPackage] = [each for each in released.versions if each.version == version]
        digest = (versions[0].digest if versions else None) if version else released.champion
        if not digest:
            known = ", ".join(each.version for each in released.versions) or "none"
            raise ConfigurationError(f"{name}: the server has no such version; it has: {known}")
        return client.download(digest, self._folder / digest)

    def by_digest(self, digest: str) -> Package:
        """A package that another was trained from."""
        client = self._needed(f"it was trained from package {digest[:12]}: give its folder with --champion; or")
        return client.download(digest, self._folder / digest)

    def close(self) -> None:
        """End the connection."""
        if self._client is not None:
            self._client.close()

    def _needed(self, why: str) -> ServerClient:
        if self._client is None:
            raise ConfigurationError(f"{why} give --server and --token (SHOAL_SERVER, SHOAL_TOKEN)")
        return self._client
