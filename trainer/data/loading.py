"""Inputs of chosen rows out of the lake: into memory, or, where they are many, into files that are mapped."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.signature import Signature
from trainer.data.decoding import DecodedInputs, RowDecoder, Shapes, joined
from trainer.data.lake_scan import LakeScan
from trainer.data.row_file import RowFile, RowFileWriter, TensorShapes, bytes_of, storage_refused
from trainer.data.row_store import RowStore, write_store
from trainer.data.rows import SENT

_PROBED_ROWS = 256


@dataclass(frozen=True)
class Loaded:
    """What came of N rows.

    Args:
        fits: bool[N]: which of them fit; F rows. ``broken``: which break the signature.
        digests: SHA-256 of each of the F as the lake holds it.
        complaint: What is wrong with the first that does not fit.
        read: Inputs and what was sent (its name begins with :data:`trainer.data.rows.SENT`, where it is not the same)
            of some of the F by number.
        tensors: What ``read`` gives.
    """

    fits: NDArray[np.bool_]
    broken: NDArray[np.bool_]
    digests: list[bytes]
    complaint: str
    tensors: TensorShapes
    read: Callable[[NDArray[np.int64]], dict[str, NDArray[Any]]]

    def store(self, folder: Path, keys: list[str], targets: NDArray[np.int64]) -> RowStore:
        """A store of the F rows."""
        return write_store(folder, keys, targets, self.tensors, self.read)


def estimated_bytes(scan: LakeScan, places: NDArray[np.int64]) -> int:
    """Of the inputs of some rows, by the first of them."""
    sizes = [len(blob) for _, blobs in scan.inputs(places[:_PROBED_ROWS]) for blob in blobs if blob]
    return int(len(places) * np.mean(sizes)) if sizes else 0


def in_memory(
    scan: LakeScan, signature: Signature, places: NDArray[np.int64], *, shapes: Shapes | None = None
) -> DecodedInputs:
    """Decode rows into memory, in the order of ``places``, int64[N].

    Args:
        shapes: Of a row by input, where other rows have said so; else the first row does.
    """
    decoder = RowDecoder(signature, shapes) if shapes else _decoder(scan, signature, places)
    parts, numbers = [], []
    for at, blobs in scan.inputs(places):
        parts.append(decoder.decode([blob or b"" for blob in blobs]))
        numbers.append(at)
    found = joined(parts, signature)
    at = np.concatenate(numbers) if numbers else np.zeros(0, dtype=np.int64)
    fits, broken = np.zeros(len(places), dtype=bool), np.zeros(len(places), dtype=bool)
    fits[at], broken[at] = found.fits, found.broken
    order = np.argsort(at[found.fits])
    inputs = {name: array[order] for name, array in found.inputs.items()}
    sent = {name: inputs[name] if array is found.inputs[name] else array[order] for name, array in found.sent.items()}
    return DecodedInputs(inputs, sent, fits, broken, [found.digests[number] for number in order], found.complaint)


@contextmanager
def on_disk(scan: LakeScan, signature: Signature, places: NDArray[np.int64], cache: Path) -> Iterator[Loaded]:
    """Decode rows into a file that is there until the ``with`` ends; memory holds about a thousand at a time.

    Raises:
        DatasetError: The disk is full.
    """
    decoder = _decoder(scan, signature, places)
    with ExitStack() as stack:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".decoding-", dir=cache)))
            found = _write(scan, decoder, places, folder / "rows.arrow")
        except OSError as error:
            raise storage_refused(cache, error, len(places) * bytes_of(decoder.tensors())) from error
        yield found


def _write(scan: LakeScan, decoder: RowDecoder, places: NDArray[np.int64], path: Path) -> Loaded:
    fits, broken, complaint = np.zeros(len(places), dtype=bool), np.zeros(len(places), dtype=bool), ""
    digests: dict[int, bytes] = {}
    lies: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    writer: RowFileWriter | None = None
    with ExitStack() as stack:
        for at, blobs in scan.inputs(places):
            part = decoder.decode([blob or b"" for blob in blobs])
            complaint = complaint or part.complaint
            broken[at] = part.broken
            if not part.digests:
                continue
            if writer is None:  # the shape of open axes is known from the first row on
                writer = stack.enter_context(RowFileWriter(path, decoder.tensors()))
            writer.append(part.inputs | {f"{SENT}{name}": array for name, array in part.sent.items()})
            own = at[part.fits]
            fits[own] = True
            lies.append(own)
            digests.update(zip(own.tolist(), part.digests, strict=True))
    place = np.argsort(np.concatenate(lies))  # where the k-th fitting row lies in the file
    file = writer.file() if writer else RowFile(path, decoder.tensors(), np.zeros(1, dtype=np.int64))
    return Loaded(
        fits=fits,
        broken=broken,
        digests=[digests[number] for number in np.flatnonzero(fits).tolist()],
        complaint=complaint,
        tensors=file.tensors,
        read=lambda rows: file.read(place[rows]),
    )


def _decoder(scan: LakeScan, signature: Signature, places: NDArray[np.int64]) -> RowDecoder:
    """A decoder that has seen the first rows: which row's shape holds must not hang on how the lake's files lie."""
    decoder = RowDecoder(signature)
    if any(axis is None for spec in signature.inputs for axis in spec.shape[1:]):
        first = sorted(
            (int(n), blob) for at, blobs in scan.inputs(places[:16]) for n, blob in zip(at, blobs, strict=True)
        )
        for _, blob in first:
            if decoder.decode([blob or b""]).digests:
                break
    return decoder
