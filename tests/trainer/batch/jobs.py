"""Jobs, inputs and a way to run them, for the tests of batch inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from numpy.typing import NDArray

from edge_agent.contract.batch import BatchJob, decode_job
from edge_agent.runtime.package import Package
from tests.fakes.packages import LABELS, answer, model_weights, reference_images
from trainer.batch.batch import Batch, Outcome
from trainer.batch.model import BatchModel

MIDNIGHT = "2026-11-23T00:00:00Z"


def job(package: Package, folder: Path, **changes: Any) -> BatchJob:
    """A job from ``folder/in`` to ``folder/out``."""
    made = {
        "name": "nightly",
        "model": {"package": str(package.folder)},
        "input": {"kind": "parquet", "path": str(folder / "in")},
        "output": {"kind": "delta", "path": str(folder / "out")},
        "key": ["id"],
        "resources": {"workers": 2},
    }
    return decode_job(made | changes)


def run(some: BatchJob, *, logical_time: str = MIDNIGHT, run: str = "run-1", work: Path | None = None) -> Outcome:
    """Run a job whose model is a package folder."""
    assert some.model.package is not None
    package = Package.open(Path(some.model.package), verify=False)
    resources = some.resources
    model = BatchModel(package, variant=some.model.variant, outputs=some.outputs, batch_rows=resources.batch_rows)
    try:
        where = work or Path(some.model.package).parent / "work"
        return Batch(some, model, logical_time=logical_time, run=run, work=where, report=quiet).run()
    finally:
        model.close()


def quiet(stage: str, fraction: float, message: str, metrics: dict[str, float]) -> None:
    """Nobody listens."""


def images(rows: int, seed: int = 7) -> NDArray[np.float32]:
    """Images float32[rows, 64]."""
    return reference_images(rows, seed)


def table(ids: list[Any], pixels: NDArray[Any], **columns: list[Any]) -> pa.Table:
    """Rows as a warehouse has them: an id, a list of pixels, whatever else."""
    image = pa.array(list(pixels), pa.list_(pa.float32()))
    return pa.table({"id": pa.array(ids), "image": image, **{name: pa.array(cells) for name, cells in columns.items()}})


def write(folder: Path, name: str, rows: pa.Table, *, group: int = 1000) -> Path:
    """A Parquet file of the input."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / name, row_group_size=group)
    return folder / name


def expected(pixels: NDArray[np.float32]) -> list[str]:
    """The classes that the model of seed 0 answers."""
    return [LABELS[at] for at in answer(*model_weights(0), pixels).argmax(axis=1)]


def delta_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Delta table, by key."""
    return sorted(DeltaTable(str(path)).to_pyarrow_table().to_pylist(), key=lambda row: str(row["key"]))


def changed(some: BatchJob, **changes: Any) -> BatchJob:
    """The job with other members."""
    return decode_job(msgspec.to_builtins(some) | changes)
