"""The long ones: a storm of every kind of traffic, and a thousand hot swaps, on a real agent.

``SHOAL_FUZZ_S`` sets how many seconds the storm takes (180), ``SHOAL_FUZZ_SEED`` what it does.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.fakes.packages import answer, make_package, model_weights
from tests.integration.applications import Applications
from tests.integration.attacked_agent import attacked
from tests.integration.hostile_requests import EXPECTED, IMAGES
from tests.integration.storm import Storm

_SEED = 20_240_607
_REQUESTS_BEFORE = 12_000


def _rage(folder: Path, seconds: float, seed: int) -> Storm:
    with attacked(folder) as device:
        storm = Storm(device, folder, seed)
        storm.rage(seconds)
        memory_mb = [round(one / 1e6) for one in storm.memory[:: max(1, len(storm.memory) // 20)]]
        attacks = dict(storm.attacks.most_common())
        print(f"seed {seed}: {storm.right} right answers among {attacks}; memory in MB: {memory_mb}")  # noqa: T201
        assert storm.wrong == []
        assert storm.right > seconds
        device.ask_http("POST", "/v2/systemsharedmemory/unregister")
        device.assert_rests()
        assert device.device.stop() == 0
        device.assert_no_mistake()
    return storm


def test_a_short_storm_stops_nothing(tmp_path: Path) -> None:
    _rage(tmp_path, 6.0, _SEED)


@pytest.mark.slow
def test_a_storm_stops_nothing_and_takes_no_memory(tmp_path: Path) -> None:
    storm = _rage(tmp_path, float(os.environ.get("SHOAL_FUZZ_S", "180")), int(os.environ.get("SHOAL_FUZZ_SEED", _SEED)))
    third = len(storm.memory) // 3
    warm, late = max(storm.memory[:third]), max(storm.memory[2 * third :])
    assert late <= warm * 1.1 + 8e6, storm.memory


@pytest.mark.slow
@pytest.mark.parametrize("how", ["another version", "the same version"])
def test_a_thousand_hot_swaps_fail_no_request_and_take_no_memory(tmp_path: Path, how: str) -> None:
    """As an operator does it: a package is moved into the models' folder, and the model is loaded over HTTP."""
    swaps, spare = 1000, tmp_path / "spare"
    make_package(spare, version="2", seed=2)
    right = (EXPECTED, answer(*model_weights(2), IMAGES))
    with attacked(tmp_path) as device:
        inside = device.models / "digits-2"
        memory: list[int] = []
        # What the monitor keeps of recent requests has a bound: it is to be reached before.
        with Applications(device, ("digits",), right=right) as applications:
            device.until(lambda: applications.answered > _REQUESTS_BEFORE, lambda: "the first requests")
            for number in range(1, swaps + 1):
                if how == "another version":
                    (spare if number % 2 else inside).rename(inside if number % 2 else spare)
                status, text = device.ask_http("POST", "/v2/repository/models/digits/load")
                assert status == 200, text
                version = "2" if how == "another version" and number % 2 else "1"
                assert json.loads(text)["version"] == version
                if number in (10, swaps):
                    time.sleep(1.0)
                memory.append(device.rss)
        print(  # noqa: T201
            f"{how}: {applications.answered} answers, {swaps} swaps, {memory[9] / 1e6:.1f} MB after the tenth, at most "
            f"{max(memory[9:]) / 1e6:.1f}, {memory[-1] / 1e6:.1f} MB after the last"
        )
        assert (applications.wrong, applications.refused) == ([], 0)
        assert abs(memory[-1] / memory[9] - 1) <= 0.05
        device.assert_no_mistake()
