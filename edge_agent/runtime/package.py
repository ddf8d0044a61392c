"""A model package on disk: a folder, its manifest and the digest under which everyone speaks of it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import DigestMismatch, ManifestError, PackageError, storage_error
from edge_agent.contract.manifest import (
    FULL_PRECISION,
    GOLDEN_FILE,
    MANIFEST_FILE,
    REFERENCE_FILE,
    Manifest,
    decode_manifest,
    digest_of,
    golden_file,
)
from edge_agent.contract.profile import ReferenceProfile, decode_profile
from edge_agent.contract.tensors import Datatype

_CHUNK_BYTES = 1 << 20
COPY_AGAIN = "damaged or changed on its way: copy the package again"


class Tolerance(NamedTuple):
    """How far a float may be from the expected one: ``atol + rtol * |expected|``.

    The same arithmetic in another order, on another processor, stays within the defaults.
    """

    rtol: float = 1e-3
    atol: float = 1e-4


@dataclasses.dataclass(frozen=True)
class Golden:
    """Inputs and what the model answered when it was packaged, by tensor name; axis 0 is N, the same for all."""

    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Package:
    """An opened package.

    Args:
        digest: SHA-256 of ``manifest.json``, in lowercase hexadecimal.
    """

    folder: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, folder: Path, *, verify: bool) -> Package:
        """The package in ``folder``.

        Args:
            verify: Whether to read every file and compare its SHA-256 with the manifest's.
        Raises:
            PackageError: There is no package, a file is missing, or (ManifestError) the manifest breaks a rule.
            DigestMismatch: A file's bytes are not those that the manifest names.
        """
        data = _read(folder / MANIFEST_FILE)
        package = cls(folder=folder, manifest=_manifest(folder, data), digest=digest_of(data))
        if verify:
            package.verify()
        return package

    def verify(self) -> None:
        """Compare every file with the manifest.

        Raises:
            PackageError: A file is missing.
            DigestMismatch: A file's bytes differ.
        """
        for name in self.manifest.files:
            self.verify_file(name)

    def verify_file(self, name: str) -> None:
        """Compare one file with the manifest.

        Raises:
            PackageError: It is missing.
            DigestMismatch: Its bytes differ.
        """
        expected, actual = self.manifest.files[name].sha256, file_digest(self.path(name))
        if actual != expected:
            raise DigestMismatch(str(self.path(name)), expected=expected, actual=actual, cure=COPY_AGAIN)

    def is_served(self, name: str) -> bool:
        """Whether a device needs the file to serve the model; else it is there to be read by people and servers."""
        variants = self.manifest.variants
        models = {path for variant in variants.values() for path in (variant.model, *variant.data)}
        return name in models | {REFERENCE_FILE, GOLDEN_FILE, *(golden_file(variant) for variant in variants)}

    def path(self, name: str) -> Path:
        """Where the file ``name`` of the manifest lies.

        Raises:
            PackageError: The manifest names no such file.
        """
        if name not in self.manifest.files:
            raise PackageError(
                f"{self.folder}: the package has no file {name!r}; it has: {sorted(self.manifest.files)}"
            )
        return self.folder / name

    def reference(self) -> ReferenceProfile:
        """The reference profile.

        Raises:
            PackageError: It is missing or unreadable.
        """
        return decode_profile(_read(self.path(REFERENCE_FILE)))

    def golden(self, variant: str = FULL_PRECISION) -> Golden:
        """The golden samples, with what a variant answered; where that was not kept, what ``fp32`` did.

        Raises:
            PackageError: They are missing or unreadable.
        """
        own = golden_file(variant)
        return decode_golden(_read(self.path(own if own in self.manifest.files else GOLDEN_FILE)))


def encode_golden(golden: Golden) -> bytes:
    """The bytes of ``golden.npz``: keys ``input/NAME`` and ``output/NAME``; equal samples give equal bytes.

    BYTES tensors (object arrays) are kept as fixed-width byte strings, so that loading never unpickles.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for side, tensors in (("input", golden.inputs), ("output", golden.outputs)):
        for name, array in tensors.items():
            if array.dtype.kind == "O":
                array = np.array(_encoded(array), dtype=np.bytes_).reshape(array.shape)  # noqa: PLW2901
            arrays[f"{side}/{name}"] = array
    buffer = io.BytesIO()
    # By hand: numpy.savez_compressed differs between versions, and a keyword named "file" would collide.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy")  # its default date, 1980, keeps the bytes reproducible
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(arrays[name]), allow_pickle=False)
    return buffer.getvalue()


def _arrays(data: bytes, tries: int = 3) -> dict[str, NDArray[Any]]:
    """The arrays of an npz archive, by key.

    numpy reads their heads with ``ast.literal_eval``, whose depth CPython 3.11 and 3.12 count in one place for all
    threads: where another thread does the same, one of them is told now and then (measured: once in 24,000 times with
    four threads) of a "SystemError: AST constructor recursion depth mismatch". No package is to be refused for that.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except SystemError:
        if tries == 1:
            raise
        return _arrays(data, tries - 1)


def decode_golden(data: bytes) -> Golden:
    """The golden samples in the bytes of ``golden.npz``.

    Raises:
        PackageError: They are none.
    """
    try:
        arrays = _arrays(data)
        texts = {key for key, array in arrays.items() if Datatype.of(array.dtype) is Datatype.BYTES}
    except Exception as error:
        # zipfile, zlib and numpy have an exception of their own for every way in which an archive can be wrong.
        raise PackageError(f"{GOLDEN_FILE}: {error}") from error
    golden = Golden(inputs={}, outputs={})
    sides = {"input": golden.inputs, "output": golden.outputs}
    for key, array in arrays.items():
        side, _, name = key.partition("/")
        if side not in sides or not name:
            raise PackageError(f"{GOLDEN_FILE}: key {key!r} is neither input/NAME nor output/NAME")
        sides[side][name] = _object_bytes(array) if key in texts else array
    if not golden.inputs or not golden.outputs:
        raise PackageError(f"{GOLDEN_FILE}: needs at least one input and one output")
    return golden


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in lowercase hexadecimal; read in chunks.

    Raises:
        PackageError: The file is missing.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise PackageError(f"{path}: the file is missing from the package") from error
    except OSError as error:
        raise storage_error(error, str(path)) or PackageError(f"{path}: {error}") from error
    return digest.hexdigest()


def _manifest(folder: Path, data: bytes) -> Manifest:
    try:
        return decode_manifest(data)
    except ManifestError as error:
        cause = error.__cause__
        is_cut = isinstance(cause, msgspec.DecodeError) and not isinstance(cause, msgspec.ValidationError)
        raise ManifestError(f"{folder}/{error}{'; ' + COPY_AGAIN if is_cut else ''}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PackageError(_why_absent(path)) from error
    except OSError as error:
        raise storage_error(error, str(path)) or PackageError(f"{path}: {error}") from error


def _why_absent(path: Path) -> str:
    folder = path.parent
    if folder.is_dir():
        return f"{path}: the file is missing; is {folder} a model package?"
    what = "is a file" if folder.exists() else "there is no such folder"
    return f"{folder}: {what}; a package is a folder with a {MANIFEST_FILE}"


def _encoded(array: NDArray[Any]) -> list[bytes]:
    return [element.encode() if isinstance(element, str) else bytes(element) for element in array.ravel()]


def _object_bytes(array: NDArray[Any]) -> NDArray[Any]:
    """Text of any kind as an object array of ``bytes``."""
    out = np.empty(array.size, dtype=object)
    out[:] = _encoded(array.astype(object))
    return out.reshape(array.shape)
