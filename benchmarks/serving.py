"""What the local API adds to an inference: a real agent process, one kept connection, beside the raw runtime.

Ratios within one run are what counts; these figures move with the machine. Writes build/bench/serving.json.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

from edge_agent.runtime.package import Package
from edge_agent.runtime.slots import load
from tests.fakes.packages import make_package

RUNS = 3000
WARM_UP = 300


def median_us(call: Callable[[], object]) -> tuple[float, float]:
    """Median and 99th percentile of ``call`` in microseconds."""
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def poster(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]
) -> Callable[[], bytes]:
    """A call that posts ``body`` and reads the answer."""

    def post() -> bytes:
        connection.request("POST", path, body, headers)
        reply = connection.getresponse()
        data = reply.read()
        assert reply.status == 200, data
        return data

    return post


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        package = make_package(Path(folder) / "package")
        state = Path(folder) / "state"
        agent = [sys.executable, "-m", "edge_agent.cli"]
        subprocess.run(
            [*agent, "install", str(package.folder), "--state", str(state)], check=True, stdout=subprocess.DEVNULL
        )
        begin = time.monotonic()
        process = subprocess.Popen([*agent, "run", "--state", str(state), "--port", "0", "--log-level", "warning"])
        try:
            rows = measure(package, state, process, begin)
        finally:
            process.terminate()
            process.wait(timeout=20)
    target = Path("build/bench/serving.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"{'transport':<14}{'p50 us':>10}{'p99 us':>10}{'added us':>10}{'x raw':>8}")
    for row in rows:
        print(
            f"{row['transport']:<14}{row['p50_us']:>10.0f}{row['p99_us']:>10.0f}{row['added_p50_us']:>10.0f}{row['ratio']:>8.1f}"
        )
    print("x raw: the p50 of one request through the API, over that of the same inference called in this process;")
    print("       it falls as models grow, for what is added (microseconds) stays the same. Lower is better.")
    print(f"start to first answer {rows[0]['start_s']:.2f} s, resident {rows[0]['rss_mb']:.0f} MB")


def measure(package: Package, state: Path, process: subprocess.Popen[bytes], begin: float) -> list[dict[str, object]]:
    while not (state / "agent.json").exists():
        assert process.poll() is None, "the agent ended by itself"
        time.sleep(0.01)
    address = urlsplit(json.loads((state / "agent.json").read_text())["api"])
    connection = http.client.HTTPConnection(str(address.hostname), address.port)
    spec = package.manifest.signature.inputs[0]
    row = package.golden().inputs[spec.name][:1]
    path = f"/v2/models/{package.manifest.name}/infer"
    tensor = {"name": spec.name, "datatype": spec.datatype.value, "shape": list(row.shape)}
    as_json = json.dumps({"inputs": [{**tensor, "data": row.ravel().tolist()}]}).encode()
    head = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": row.nbytes}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    binary_headers = {"Inference-Header-Content-Length": str(len(head))}
    poster(connection, path, as_json, {})()
    start_s = time.monotonic() - begin
    backend = load(package).backend
    inputs = {spec.name: np.ascontiguousarray(row)}
    raw = median_us(lambda: backend.infer(inputs))
    found = {
        "raw": raw,
        "http json": median_us(poster(connection, path, as_json, {})),
        "http binary": median_us(poster(connection, path, head + row.tobytes(), binary_headers)),
    }
    rss_mb = psutil.Process(process.pid).memory_info().rss / 1e6
    return [
        {"target": "shoal", "model": "softmax 64x10", "transport": name, "connections": 1, "p50_us": p50, "p99_us": p99,
         "added_p50_us": p50 - raw[0], "ratio": p50 / raw[0], "rss_mb": rss_mb, "start_s": start_s}
        for name, (p50, p99) in found.items()
    ]  # fmt: skip


if __name__ == "__main__":
    main()
