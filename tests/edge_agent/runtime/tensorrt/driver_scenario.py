"""An engine on a real provider of GPU memory, over the driver without a GPU.

python -m tests.edge_agent.runtime.tensorrt.driver_scenario PROVIDER FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from edge_agent.contract.manifest import Batching
from edge_agent.runtime.gpu.driver import probe
from edge_agent.runtime.gpu.owner import GpuOwner
from edge_agent.runtime.gpu.providers import open_memory
from edge_agent.runtime.tensorrt.backend import TensorRtBackend
from tests.fakes.cuda_driver import counts
from tests.fakes.graph_packages import make_mixed_package, mixed_inputs, mixed_outputs
from tests.fakes.packages import INPUT, OUTPUT, answer, make_package, model_weights, reference_images
from tests.fakes.tensorrt_engines import build_plan, fake_bindings


def main(provider: str, folder: Path) -> None:
    """Print what the requests took of the driver, and what is left after all."""
    gpu = probe()
    owner, loader = (GpuOwner(lambda: open_memory(provider, gpu)) for _ in range(2))
    digits = make_package(folder / "digits", batching=Batching(max_rows=4))
    mixed = make_mixed_package(folder / "mixed")
    backends = [
        TensorRtBackend(
            package,
            build_plan(package, folder / f"{package.manifest.name}.plan"),
            bindings=fake_bindings(),
            owner=owner,
            loader=loader,
            streams=2,
            graphs=True,
        )
        for package in (digits, mixed)
    ]
    ask(backends)
    before = counts()
    for _ in range(5):
        ask(backends)
    after = counts()
    outcome = {
        "allocations": after["allocations"] - before["allocations"],
        "graphs": [list(backend.graph_counts) for backend in backends],
        "execute_us": backends[0].execute_us({INPUT: reference_images(2)}) >= 0,
    }
    for backend in backends:
        backend.close()
    owner.close()
    loader.close()
    live = {kind: count for kind, count in counts().items() if count and kind not in {"allocations", "work"}}
    print(json.dumps({**outcome, "live": live}))  # noqa: T201 - read by the test


def ask(backends: list[TensorRtBackend]) -> None:
    """Requests of several shapes, whose answers are right."""
    digits, mixed = backends
    for rows in (1, 2, 9, 1):
        images = reference_images(rows, seed=rows)
        outputs = digits.infer({INPUT: images})
        np.testing.assert_allclose(outputs[OUTPUT], answer(*model_weights(), images), atol=1e-5)
        inputs = mixed_inputs(rows, length=rows, seed=rows)
        expected = mixed_outputs(inputs)
        for name, array in mixed.infer(inputs).items():
            np.testing.assert_allclose(array, expected[name], atol=1e-5)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
