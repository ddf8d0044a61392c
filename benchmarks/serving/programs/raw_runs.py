"""Runs a model with nothing around it, on request: one line with seconds in, one line of JSON with the figures out."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime as ort

_WARM_UP = 50


def main() -> None:
    model, row = sys.argv[1:3]
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (node,) = session.get_inputs()
    inputs = {node.name: np.load(row)}
    names = [output.name for output in session.get_outputs()]
    for _ in range(_WARM_UP):
        session.run(names, inputs)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_measured(session, names, inputs, float(line))), flush=True)


def _measured(session: ort.InferenceSession, names: list[str], inputs: dict[str, np.ndarray], seconds: float) -> object:
    times: list[int] = []
    begin = last = time.perf_counter_ns()
    until = begin + int(seconds * 1e9)
    while last < until:
        session.run(names, inputs)
        now = time.perf_counter_ns()
        times.append(now - last)
        last = now
    p50, p99 = np.percentile(times, (50, 99)) / 1e3
    return {"requests_per_s": len(times) / (last - begin) * 1e9, "p50_us": p50, "p99_us": p99}


if __name__ == "__main__":
    main()
