"""What a request costs while a candidate shadows its model, and while none does: nobody who asks is to notice.

One thread asks as fast as it can, in process, through the serving core with the real monitor; rounds of all modes
alternate, and medians of the rounds count. "waits" is the longest tenth of a percent. Writes
build/bench/shadow.json. Run it as a module: python -m benchmarks.shadow
"""

from __future__ import annotations

import gc
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.models import make_model
from edge_agent.contract.manifest import Shadow
from edge_agent.monitor.monitor import Monitor
from edge_agent.outbox.outbox import Outbox
from edge_agent.runtime.asked_inputs import AskedInputs
from edge_agent.runtime.package import Package
from edge_agent.runtime.shadow import Shadows
from edge_agent.runtime.slots import LoadedModel, Slots, load
from edge_agent.serving.inference import Inference
from edge_agent.serving.request import InferenceRequest

ROUNDS = 21
RULE = Shadow(seconds=3600.0, rows=1_000_000)
SECONDS = 0.2


class Bench:
    """One model that serves, its candidate, and two ways to tell the monitor of requests."""

    def __init__(self, folder: Path, champion: LoadedModel, candidate: LoadedModel, row: np.ndarray[Any, Any]) -> None:
        self.champion, self.candidate = champion, candidate
        self.slots = Slots()
        self.slots.install(champion)
        folder.mkdir()
        self.outbox = Outbox(folder / "outbox.db", fleet="bench", device="one")
        self.monitor = Monitor(self.outbox, folder)
        self.shadows = Shadows(self.monitor, self.slots)
        self.bare = Inference(self.monitor, threads=1)
        self.full = Inference(self.shadows, threads=1, asked=AskedInputs(self.slots.take_versions_asked))
        self.inputs = {champion.signature.inputs[0].name: row}

    def round(self, inference: Inference) -> tuple[float, float]:
        """Median and 99.9th percentile of a request, in microseconds."""
        times: list[int] = []
        gc.collect()
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            begin = time.perf_counter_ns()
            with self.slots.lease(self.champion.name) as loaded:
                inference.answer(loaded, InferenceRequest("", self.inputs))
            times.append(time.perf_counter_ns() - begin)
        self.monitor.flush()
        return statistics.median(times) / 1000, float(np.quantile(times, 0.999)) / 1000

    def run(self) -> dict[str, Any]:
        """All modes, round by round."""
        found: dict[str, list[tuple[float, float]]] = {"monitor alone": [], "no shadow": [], "shadowed": []}
        for _ in range(ROUNDS):
            found["monitor alone"].append(self.round(self.bare))
            found["no shadow"].append(self.round(self.full))
            self.shadows.begin(self.champion, self.candidate, RULE)
            found["shadowed"].append(self.round(self.full))
            report = self.shadows.report(self.champion.name)
            self.shadows.end(self.champion.name)
        if report is None or report.failed or not report.rows:
            raise RuntimeError(f"the candidate was not compared: {report}")
        medians = {
            mode: [statistics.median(column) for column in zip(*rounds, strict=True)] for mode, rounds in found.items()
        }
        return {"modes": medians, "rows_compared_per_s": report.rows / SECONDS, "dropped": report.dropped}

    def close(self) -> None:
        self.shadows.close()
        self.bare.close()
        self.full.close()
        self.slots.close()
        self.candidate.close()
        self.monitor.close()
        self.outbox.close()


def main() -> None:
    logging.disable(logging.WARNING)  # of samples that are too large to be sent, and the like
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in ("tiny", "cnn", "image"):
            made = [make_model(folder / f"{model}-{version}", model, version=version) for version in ("1", "2")]
            champion, candidate = (load(Package.open(each.folder, verify=True)) for each in made)
            bench = Bench(folder / model, champion, candidate, made[0].row)
            rows[f"{model}, {made[0].row.nbytes / 1024:.0f} KiB"] = bench.run()
            bench.close()
    target = Path("build/bench/shadow.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"{'request of':<18}{'mode':<16}{'median us':>12}{'waits us':>12}")
    for what, row in rows.items():
        for mode, (median, waits) in row["modes"].items():
            print(f"{what:<18}{mode:<16}{median:>12.2f}{waits:>12.1f}")
        print(f"{'':<18}rows compared a second: {row['rows_compared_per_s']:.0f}, requests dropped: {row['dropped']}")


if __name__ == "__main__":
    main()
