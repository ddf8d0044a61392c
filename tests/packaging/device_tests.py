"""Runs the device's own tests on another Python: ``python -m tests.packaging.device_tests PYTHON WHEEL FOLDER``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from tests.packaging.interpreters import Environment, clean_environment, run

_TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "msgpack", "onnx", "tritonclient[grpc,http]")
_TESTS = "tests/edge_agent"
# They bring a server with them.
_NEED_A_NEWER_PYTHON = ("update", "link/test_link.py")
# What native code, worker processes or long waits decide: on another Python all of it takes minutes and shows nothing
# new. Names that an older Python lacks are found by mypy, which `make check` runs as on Python 3.10.
_THE_SAME_ON_EVERY_PYTHON = (
    "client/test_c_client.py",
    "client/test_documentation.py",
    "monitor/board/test_tegrastats.py",
    "runtime/gpu/test_providers.py",
    "runtime/gpu/test_survey.py",
    "runtime/tensorrt/test_builder.py",
    "runtime/tensorrt/test_over_driver.py",
    "runtime/tensorrt/test_rtx_builds.py",
    "runtime/test_acceleration.py",
    "runtime/test_hot_swap.py",
    "runtime/test_memory.py",
    "runtime/test_optimised.py",
    "serving/http/test_fuzzing.py",
    "serving/http/test_head_reader.py",
    "serving/http/test_slow_clients.py",
    "serving/http/test_splitting.py",
    "serving/test_codec_large.py",
    "serving/test_compression.py",
    "test_reporter.py",
)


def main(python: str, wheel: str, folder: Path) -> int:
    """Make an environment of that Python with the wheel in it, and run the tests there; gives pytest's exit status."""
    repository = Path.cwd()
    left_out = [f"{_TESTS}/{path}" for path in (*_NEED_A_NEWER_PYTHON, *_THE_SAME_ON_EVERY_PYTHON)]
    if missing := [path for path in left_out if not Path(path).exists()]:
        sys.exit(f"{__file__} leaves out what is not there: {missing}")
    environment = Environment(root=folder / "environment")
    run([python, "-m", "venv", str(environment.root)])
    environment.install("-c", str(repository / "constraints.txt"), wheel)
    environment.install(*_TOOLS)  # in versions for that Python, which the constraints may not know
    command = [str(environment.command("python")), "-m", "pytest", "-q", "-p", "no:cacheprovider", _TESTS]
    fewer_examples = {**clean_environment(), "SHOAL_HYPOTHESIS_PROFILE": "again"}
    with subprocess.Popen([*command, *(f"--ignore={path}" for path in left_out)], env=fewer_examples) as tests:

        def end(_number: int, _frame: FrameType | None) -> None:
            tests.terminate()

        signal.signal(signal.SIGTERM, end)
    return tests.returncode


if __name__ == "__main__":
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
