"""Hot swaps under load: no request fails, and memory does not grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.large_package import make_large_package
from tests.fakes.packages import make_package

_PROGRAM = Path(__file__).with_name("hot_swaps.py")


def _swap(tmp_path: Path, swaps: int, timeout_s: float) -> dict[str, Any]:
    command = [sys.executable, str(_PROGRAM), str(tmp_path / "models"), str(tmp_path / "state"), str(swaps)]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout_s, env={"PYTHONPATH": str(root)}
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    print(found)  # noqa: T201 - the figures of a soak
    assert found["failures"] == []
    assert found["answered"] > swaps
    assert found["budget_at_end"] == found["served"], "what was replaced is closed"
    return found


def _small(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_package(tmp_path / f"models/{seed}", version=str(seed), seed=seed)


def test_no_request_fails_while_models_are_swapped_a_hundred_times(tmp_path: Path) -> None:
    _small(tmp_path)
    found = _swap(tmp_path, 100, 100)
    assert found["versions"] == ["1", "2"]
    assert found["at_end"] <= found["after_tenth"] * 1.1


@pytest.mark.slow
@pytest.mark.parametrize("weights_mib", [0, 5])
def test_memory_after_a_thousand_swaps_is_within_five_percent_of_that_after_the_tenth(
    tmp_path: Path, weights_mib: int
) -> None:
    if weights_mib:
        for seed in (1, 2, 3):
            make_large_package(
                tmp_path / f"models/{seed}", name="digits", version=str(seed), seed=seed, weights_mib=weights_mib
            )
    else:
        _small(tmp_path)
    found = _swap(tmp_path, 1000, 3600)
    assert abs(found["at_end"] / found["after_tenth"] - 1) <= 0.05
