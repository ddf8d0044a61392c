"""The child that a survey asks: started when it is needed, started again after a crash, ended after a hang."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, Any

# Without the working directory, which Python would search first; with whatever this process can import.
_CODE = (
    "import sys; sys.path[:] = [folder for folder in sys.path if folder]; "
    "from edge_agent.runtime.gpu.survey_steps import main; main()"
)
_WHAT = {"gpu": "looking for a GPU", "module": "importing {module}", "memory": "opening the GPU with {provider}"}
# A process that hangs in a driver within the kernel outlives SIGKILL: nobody must wait for it for ever.
_UNKILLABLE_S = 2.0


class StepFailed(Exception):
    """A step did not succeed; its text is the reason."""


class SurveyProcess:
    """Asks a child for one step at a time.

    Args:
        timeout_s: How long one step may take, the child's start included.
        library: Name or path of the driver's library.
    """

    def __init__(self, *, timeout_s: float, library: str) -> None:
        self._timeout_s = timeout_s
        self._library = library
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def close(self) -> None:
        """End the child, if there is one."""
        self._end()

    def ask(self, step: str, **arguments: Any) -> dict[str, Any]:
        """Do one step in the child.

        Args:
            arguments: See :mod:`edge_agent.runtime.gpu.survey_steps`.
        Raises:
            StepFailed: It failed, crashed or hung.
        """
        what = _WHAT[step].format_map(arguments)
        request = {"step": step, "library": self._library, **arguments}
        try:
            line = self._exchange(json.dumps(request).encode() + b"\n")
        except TimeoutError as error:
            self._end(patience_s=0)
            raise StepFailed(f"{what} took longer than {self._timeout_s:g} s: it hangs") from error
        except OSError as error:
            self._end()
            raise StepFailed(f"{what}: no process could be started for it: {error}") from error
        if line is None:
            raise StepFailed(f"{what} crashed the process that tried it ({self._end()})")
        answer: dict[str, Any] = json.loads(line)
        if "reason" in answer:
            raise StepFailed(answer["reason"])
        return answer

    def _exchange(self, request: bytes) -> bytes | None:
        """The child's answer to a line, or None where it has ended instead."""
        process = self._started()
        if process.stdin is None or process.stdout is None:
            raise OSError("it has no pipes")
        try:
            process.stdin.write(request)
        except BrokenPipeError:
            return None
        waiting = select.poll()  # not select(), which takes no descriptor above 1023
        waiting.register(process.stdout, select.POLLIN)
        deadline = time.monotonic() + self._timeout_s
        answer = b""
        while not answer.endswith(b"\n"):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not waiting.poll(left_s * 1000):
                raise TimeoutError
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                return None
            answer += part
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in _last_words
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                bufsize=0,
                start_new_session=True,  # a Ctrl-C is for the agent, which then ends it
            )
        return self._process

    def _end(self, *, patience_s: float = 2) -> str:
        """End the child; how it had ended before, in words."""
        process, self._process = self._process, None
        if process is None:
            return self._last_words()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        # It ends by itself at the end of its input, unless it hangs in a library.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f"{_ending(process.wait(patience_s))}{self._last_words()}"
        process.kill()
        try:
            status = process.wait(_UNKILLABLE_S)
        except subprocess.TimeoutExpired:
            return f"it hangs in the kernel and cannot be ended{self._last_words()}"
        return f"{_ending(status)}{self._last_words()}"

    def _last_words(self) -> str:
        errors, self._errors = self._errors, None
        if errors is None:
            return ""
        with errors:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 4096))
            lines = errors.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f": {said[-1][:200]}" if said else ""


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
