"""A camera of the demo: an application on a device, which asks its agent through the local API, as any would.

It is told what to do by JSON lines on its standard input, and says what it saw by JSON lines on its standard output:

=================================  ==========================================================================
line in                            what it does
=================================  ==========================================================================
``{"do": "world", ...}``           from now on sees the digits as that world shows them (fields of ``World``)
``{"do": "measure", "tag": T}``    asks the agent for each held-out digit, unmonitored, and says the accuracy
``{"do": "pause"}``                stops asking, and says what it has sent so far
``{"do": "resume"}``               asks again
``{"do": "stop"}``                 ends
=================================  ==========================================================================

Held-out digits carry the parameter ``monitor: false``: the loop never sees them, and their labels never leave here.
"""

from __future__ import annotations

import http.client
import json
import queue
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np

from trainer.recipe import load_module

# Rows per request when measuring; small enough that live requests are never kept waiting.
_MEASURE_ROWS = 32


class LocalApi:
    """The agent's local API over one kept connection."""

    def __init__(self, host: str, port: int, model: str) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=30)
        self._model = model

    def infer(self, images: np.ndarray[Any, np.dtype[np.float32]], parameters: dict[str, Any]) -> dict[str, Any]:
        """Ask for the class probabilities of images, float32[N, 1, 8, 8]."""
        tensor = {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}
        return self._post("infer", {"inputs": [tensor], "parameters": parameters})

    def feedback(self, request_id: str, label: str) -> dict[str, Any]:
        """Say what an earlier request's answer should have been."""
        return self._post("feedback", {"request_id": request_id, "label": label, "source": "camera"})

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def _post(self, action: str, body: dict[str, Any]) -> dict[str, Any]:
        self._connection.request(
            "POST", f"/v2/models/{self._model}/{action}", json.dumps(body), {"Content-Type": "application/json"}
        )
        reply = self._connection.getresponse()
        data = reply.read()
        if reply.status != 200:
            raise http.client.HTTPException(f"{reply.status}: {data[:500].decode(errors='replace')}")
        return dict(json.loads(data))


class Camera:
    """Shows digits to a device at a steady pace and answers when it asks for a label."""

    def __init__(self, api: LocalApi, recipe: Path, *, seed: int, per_second: float) -> None:
        data = load_module(recipe / "data.py")
        self._world_type = load_module(recipe / "world.py").World
        self._group = data.group
        self._stream, self._heldout = data.load("stream"), data.load("heldout")
        self._world = self._world_type()
        self._rng = np.random.default_rng(seed)
        self._api, self._interval_s = api, 1.0 / per_second
        self._order: list[int] = []
        self.sent: Counter[str] = Counter()
        self.labels: dict[str, str] = {}

    def step(self) -> None:
        """Show the next digit of the stream; a failure is counted and said, never hidden."""
        if not self._order:
            self._order = self._rng.permutation(len(self._stream)).tolist()
        row = self._order.pop()
        image = self._world.show(self._stream.images[row : row + 1], self._rng)
        try:
            answer = self._api.infer(image, {"group": self._group(int(self._stream.rows[row]))})
            self.sent["requests"] += 1
            if answer["parameters"]["label_wanted"]:
                label = str(self._stream.labels[row])
                self._api.feedback(answer["id"], label)
                self.labels[answer["id"]] = label
        except (OSError, http.client.HTTPException) as error:
            self.sent["failed"] += 1
            say("failed", error=f"{type(error).__name__}: {error}")
            self._api.close()

    def measure(self) -> dict[str, Any]:
        """Accuracy over the held-out digits as this camera sees them now."""
        images = self._world.show(self._heldout.images, np.random.default_rng(0))
        right, packages = 0, set()
        for start in range(0, len(images), _MEASURE_ROWS):
            part = slice(start, start + _MEASURE_ROWS)
            answer = self._api.infer(images[part], {"monitor": False})
            packages.add(answer["parameters"]["package"])
            output = next(o for o in answer["outputs"] if o["name"] == "probabilities")
            predicted = np.asarray(output["data"]).reshape(output["shape"]).argmax(axis=1)
            right += int((predicted == self._heldout.labels[part]).sum())
        return {"accuracy": right / len(images), "rows": len(images), "packages": sorted(packages)}

    def run(self, orders: queue.Queue[dict[str, Any]]) -> None:
        """Follow orders until told to stop."""
        paused = False
        due = time.monotonic()
        while True:
            try:
                order = orders.get(timeout=max(0.0, due - time.monotonic()) if not paused else None)
            except queue.Empty:
                due = max(due + self._interval_s, time.monotonic() - 1.0)  # late by more than a second: do not catch up
                self.step()
                continue
            what = order.pop("do")
            if what == "world":
                self._world = self._world_type(**order)
                say("world", **order)
            elif what == "measure":
                say("measured", tag=order["tag"], **self.measure())
            elif what == "pause":
                paused = True
                say("paused", requests=self.sent["requests"], failed=self.sent["failed"], labels=self.labels)
            elif what == "resume":
                paused, due = False, time.monotonic()
            elif what == "stop":
                return


def say(what: str, **fields: Any) -> None:
    """One JSON line for the demo to read."""
    sys.stdout.write(json.dumps({"say": what, **fields}) + "\n")
    sys.stdout.flush()


def _listen(orders: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    orders.put({"do": "stop"})  # the demo is gone


@click.command()
@click.option("--host", default="127.0.0.1")
@click.option("--port", type=int, required=True)
@click.option("--model", default="digits")
@click.option("--recipe", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--seed", type=int, required=True)
@click.option("--per-second", type=float, default=25.0)
def main(*, host: str, port: int, model: str, recipe: Path, seed: int, per_second: float) -> None:
    """Show digits to one device (started by `shoal demo`)."""
    camera = Camera(LocalApi(host, port, model), recipe, seed=seed, per_second=per_second)
    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    say("ready")
    camera.run(orders)


if __name__ == "__main__":
    main()
