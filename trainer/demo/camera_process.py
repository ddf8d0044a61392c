"""The demo's end of the conversation with a camera (:mod:`trainer.demo.camera`)."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections import deque
from typing import Any

from trainer.demo.processes import DemoFailed


class CameraProcess:
    """Gives orders to a camera and hears what it says.

    Args:
        process: Started with pipes for standard input and output.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self._process = process
        self._said: queue.Queue[dict[str, Any] | None] = queue.Queue()  # None: it has ended
        self.failures: deque[tuple[float, str]] = deque()
        threading.Thread(target=self._listen, name=f"camera {name}", daemon=True).start()

    def tell(self, do: str, **fields: Any) -> None:
        """Give an order.

        Raises:
            DemoFailed: It has ended.
        """
        if self._process.stdin is None:
            raise DemoFailed(f"camera {self.name} was started without pipes")
        try:
            self._process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise DemoFailed(f"camera {self.name} takes no orders: {error}; see its log") from error

    def hear(self, what: str, *, timeout_s: float = 60.0, **fields: Any) -> dict[str, Any]:
        """The next thing of that kind, with those fields, that the camera says.

        Raises:
            DemoFailed: It says nothing of the kind in time, or has ended.
        """
        end = time.monotonic() + timeout_s
        while True:
            try:
                said = self._said.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise DemoFailed(f"camera {self.name} did not say '{what}' within {timeout_s:g} s") from None
            if said is None:
                self._said.put(None)
                raise DemoFailed(f"camera {self.name} ended before it said '{what}'; see its log")
            if said["say"] == what and fields.items() <= said.items():
                return said

    def failed_since(self, moment: float) -> int:
        """Requests that failed since a ``time.monotonic()``."""
        return sum(1 for at, _ in self.failures if at >= moment)

    def _listen(self) -> None:
        if self._process.stdout is None:
            return
        for line in self._process.stdout:
            said = json.loads(line)
            if said["say"] == "failed":
                self.failures.append((time.monotonic(), said["error"]))
            else:
                self._said.put(said)
        self._said.put(None)
