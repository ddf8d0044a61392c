"""Batch inference beside a bare loop over Parquet and an ONNX Runtime session, and beside Ray Data, on the same cores.

Every contestant is a process of its own, reads the same files, runs the same model on every row, and writes key, class
and confidence as Parquet; ours also checks each row against the contract, sets bad ones aside and commits exactly once.
``--flat 1000000 10000000`` shows the memory; Ray Data is asked where it is installed. Ray's own start is not counted,
its actors' is, as our model's is. Writes build/bench/batch.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.serving.models import INPUT, LABELS, OUTPUT, make_model

FILE_ROWS = 131_072
GROUP_ROWS = 16_384
RESULTS = Path("build/bench/batch.json")
SHAPES = {"tiny": 64, "cnn": 3 * 64 * 64}
CORES = len(os.sched_getaffinity(0))


def write_input(folder: Path, model: str, rows: int) -> None:
    """Files of at most FILE_ROWS rows; after the eighth the same ones under other names, to spare the disk."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    made: list[Path] = []
    file_rows = min(FILE_ROWS, rows) if model == "tiny" else 1024
    for at, first in enumerate(range(0, rows, file_rows)):
        path = folder / f"part-{at:05d}.parquet"
        if at >= 8 and rows - first >= file_rows:
            path.hardlink_to(made[at % 8])
            continue
        count = min(file_rows, rows - first)
        pixels = random.random((count * SHAPES[model]), dtype=np.float32)
        offsets = np.arange(count + 1, dtype=np.int32) * SHAPES[model]
        images = pa.ListArray.from_arrays(pa.array(offsets), pa.array(pixels))
        table = pa.table({"id": np.arange(first, first + count), INPUT: images})
        pq.write_table(table, path, row_group_size=GROUP_ROWS if model == "tiny" else 256, use_dictionary=False)
        made.append(path)


def shape_of(model: str) -> tuple[int, ...]:
    return (64,) if model == "tiny" else (3, 64, 64)


def to_array(column: Any, model: str) -> Any:
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, *shape_of(model))


def run_shoal(folder: Path, model: str) -> float:
    from edge_agent.contract.batch import decode_job
    from trainer.batch.batch import Batch
    from trainer.batch.choice import local_package
    from trainer.batch.model import BatchModel

    job = decode_job(
        {
            "name": "bench",
            "model": {"package": str(folder / model)},
            "input": {"kind": "parquet", "path": str(folder / "in")},
            "output": {"kind": "delta", "path": str(folder / f"out-{os.getpid()}")},
            "key": ["id"],
        }
    )
    begin = time.perf_counter()
    network = BatchModel(local_package(job.model, None))
    Batch(
        job, network, logical_time="2026-01-01", run="bench", work=folder / "work", report=lambda *_a, **_k: None
    ).run()
    return time.perf_counter() - begin


# Rows of one run: many where rows are small, few where they are large; the best of several for either.
BARE_ROWS = {"tiny": 8192, "cnn": 64}
RAY_ROWS = {"tiny": 8192, "cnn": 64}


def run_bare(folder: Path, model: str) -> float:
    import onnxruntime as ort

    begin = time.perf_counter()
    options = ort.SessionOptions()
    options.intra_op_num_threads = CORES
    session = ort.InferenceSession(str(folder / model / "model.onnx"), options, providers=["CPUExecutionProvider"])
    labels, writer = pa.array(LABELS), None
    for path in sorted((folder / "in").iterdir()):
        for chunk in pq.ParquetFile(path).iter_batches(batch_size=BARE_ROWS[model]):
            (answers,) = session.run([OUTPUT], {INPUT: to_array(chunk.column(INPUT), model)})
            best = labels.take(pa.array(answers.argmax(axis=1)))
            keys = chunk.column("id").cast(pa.string())
            table = pa.table({"key": keys, "prediction": best, "confidence": answers.max(axis=1)})
            writer = writer or pq.ParquetWriter(
                folder / f"bare-{os.getpid()}.parquet", table.schema, compression="zstd", compression_level=1
            )
            writer.write_table(table)
    assert writer is not None
    writer.close()
    return time.perf_counter() - begin


class RayModel:
    """An actor of Ray Data, as its own guide writes one, on Arrow batches, which cost no copy of the images."""

    def __init__(self, path: str, model: str) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._model = model

    def __call__(self, batch: pa.Table) -> pa.Table:
        (answers,) = self._session.run([OUTPUT], {INPUT: to_array(batch[INPUT].combine_chunks(), self._model)})
        best = pa.array(LABELS).take(pa.array(answers.argmax(axis=1)))
        keys = batch["id"].cast(pa.string())
        return pa.table({"key": keys, "prediction": best, "confidence": answers.max(axis=1)})


def run_ray(folder: Path, model: str) -> float:
    import ray

    ray.init(num_cpus=CORES + 1, include_dashboard=False, log_to_driver=False, object_store_memory=512 << 20)
    ray.data.DataContext.get_current().enable_progress_bars = False
    begin = time.perf_counter()
    files = len(list((folder / "in").iterdir()))
    # By hand: of its own accord it puts small files into one block, and one actor does everything.
    found = ray.data.read_parquet(str(folder / "in")).repartition(max(files, 2 * CORES))
    arguments = (str(folder / model / "model.onnx"), model)
    actors = ray.data.ActorPoolStrategy(size=CORES)
    answerer: Any = RayModel
    found = found.map_batches(
        answerer,
        fn_constructor_args=arguments,
        batch_size=RAY_ROWS[model],
        batch_format="pyarrow",
        compute=actors,
        num_cpus=1,
    )
    found.write_parquet(str(folder / f"ray-{os.getpid()}"))
    seconds = time.perf_counter() - begin
    ray.shutdown()
    return seconds


def child(who: str, folder: Path, model: str) -> None:
    """Run one contestant in this process, and print seconds and the most memory it ever had."""
    runs = {"shoal": run_shoal, "bare": run_bare, "ray": run_ray}
    seconds = runs[who](folder, model)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "peak_mb": int(peak.split()[1]) / 1000}))


def measure(who: str, folder: Path, model: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.batch", "--child", who, "--folder", str(folder), "--model", model]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise SystemExit(f"{who}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(model: str, rows: int, contestants: list[str], rounds: int) -> list[dict[str, Any]]:
    """The best of some rounds of each, one after the other, so that a busy moment hits all alike."""
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        make_model(folder / model, model)
        write_input(folder / "in", model, rows)
        for _ in range(rounds):
            for who in contestants:
                found = measure(who, folder, model)
                if who not in best or found["seconds"] < best[who]["seconds"]:
                    best[who] = found
    return [
        {"model": model, "rows": rows, "who": who, "rows_per_s": rows / one["seconds"], **one}
        for who, one in best.items()
    ]


def table(results: list[dict[str, Any]]) -> str:
    lines = [f"{'model':<6} {'rows':>10}  {'':<6} {'rows/s':>9}  {'of bare':>7}  {'peak MB':>7}"]
    for one in results:
        bare = next(
            (o for o in results if (o["model"], o["rows"], o["who"]) == (one["model"], one["rows"], "bare")), None
        )
        share = f"{one['rows_per_s'] / bare['rows_per_s']:.0%}" if bare else "-"
        lines.append(
            f"{one['model']:<6} {one['rows']:>10}  {one['who']:<6} {one['rows_per_s']:>9.0f}  {share:>7}  "
            f"{one['peak_mb']:>7.0f}"
        )
    return "\n".join(lines)


def keep(results: list[dict[str, Any]]) -> None:
    """Write what there is down, beside what earlier runs found of other sizes: a long run may be broken off."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else []
    newest = {(one["model"], one["rows"], one["who"]): one for one in [*known, *results]}
    RESULTS.write_text(json.dumps({"cores": CORES, "results": list(newest.values())}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000], help="of the tiny model")
    parser.add_argument("--cnn-rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--ray",
        action=argparse.BooleanOptionalAction,
        default=importlib.util.find_spec("ray") is not None,
        help="ask Ray Data too, at the first number of rows; where it is installed, unless told otherwise",
    )
    parser.add_argument("--flat", type=int, nargs="*", default=[], help="rows of further runs of ours alone")
    parser.add_argument("--only", nargs="*", help="contestants")
    parser.add_argument("--child")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--model", default="tiny")
    given = parser.parse_args()
    if given.child:
        child(given.child, given.folder, given.model)
        return
    contestants = given.only or ["bare", "shoal"]
    results = []
    for at, rows in enumerate(given.rows):
        results += compare("tiny", rows, contestants + ["ray"] * (given.ray and not at), given.rounds)
        keep(results)
    for rows in given.flat:
        results += compare("tiny", rows, ["shoal"], 1)
        keep(results)
    if given.cnn_rows:
        results += compare("cnn", given.cnn_rows, contestants, given.rounds)
        keep(results)
    print(table(results))


if __name__ == "__main__":
    main()
