"""Makes a package folder: files first, then the manifest that names them, then one rename."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from edge_agent.contract.errors import PackageError, storage_error
from edge_agent.contract.manifest import MANIFEST_FILE, FileEntry, Manifest, encode_manifest
from edge_agent.durable import sync_folder, sync_tree
from edge_agent.runtime.package import Package, file_digest


def write_package(
    folder: Path, *, files: Mapping[str, bytes | Path], manifest: Callable[[dict[str, FileEntry]], Manifest]
) -> Package:
    """Write a package and open it; ``folder`` appears whole or not at all.

    Args:
        folder: Where the package shall lie; must not exist, or be empty.
        files: Contents, or the files to copy, by path within the package.
        manifest: Makes the manifest when the files' digests and sizes are known.
    Raises:
        PackageError: The folder is there already, or the manifest breaks a rule.
        StorageFull, StorageNotWritable: The disk refuses.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PackageError(f"{folder}: already there; remove it, or choose another folder for the package")
    building: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        entries = {name: _place(building, name, content) for name, content in sorted(files.items())}
        _write(building / MANIFEST_FILE, encode_manifest(manifest(entries)))
        building.chmod(0o755)  # mkdtemp makes it private
        package = Package.open(building, verify=False)
        sync_tree(building)
        building.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise storage_error(error, str(folder)) or PackageError(f"{folder}: {error}") from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
    return Package(folder=folder, manifest=package.manifest, digest=package.digest)


def _place(building: Path, name: str, content: bytes | Path) -> FileEntry:
    path = building / name
    if building.resolve() not in path.resolve().parents:
        raise PackageError(f"file {name!r}: use a relative path inside the package, without '..'")
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        _write(path, content)
    else:
        shutil.copyfile(content, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    return FileEntry(sha256=file_digest(path), size_bytes=path.stat().st_size)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
