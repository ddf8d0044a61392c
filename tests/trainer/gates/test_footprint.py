from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_agent.contract.manifest import Batching
from tests.fakes.packages import make_package
from trainer.errors import MeasurementFailed
from trainer.gates.footprint import Footprint, measure, preferred_rows, speedup
from trainer.gates.limits import broken_limits
from trainer.recipe_file import Gates


def test_each_form_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package", int8_seed=1, batching=Batching(max_rows=8, preferred_rows=(4,)))
    found = measure(package)
    assert set(found) == {"fp32", "int8"}
    for each in found.values():
        assert 0 < each.row_us <= each.p99_us
        assert each.batch_rows == 4
        assert each.batch_us > 0
        assert each.memory_bytes >= 0
        assert 0 < each.row_speedup.low <= each.row_speedup.times <= each.row_speedup.high
    assert found["fp32"].row_speedup.times == found["fp32"].batch_speedup.times == 1


def test_a_machine_that_is_busy_with_something_else_hardly_changes_how_much_faster_a_form_is() -> None:
    rng = np.random.default_rng(0)
    rounds = []
    for number in range(50):
        # For half of the rounds all takes three times as long; and one run in ten is interrupted.
        busy = 3.0 if number >= 25 else 1.0
        runs = [busy * typical * (1 + 20 * (rng.random(20) < 0.1)) for typical in (40.0, 30.0)]
        rounds.append([each.tolist() for each in runs])
    found = speedup(rounds, 1, 0)
    assert found.times == pytest.approx(40 / 30, rel=0.01)
    assert 1.3 < found.low <= found.high < 1.37
    same = speedup([[one[0], one[0]] for one in rounds], 1, 0)
    assert (same.low, same.high) == (1.0, 1.0)


def test_a_model_that_does_not_run_is_said_with_the_runtimes_words(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package")
    (package.folder / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(MeasurementFailed, match=r"ModelLoadFailed: .*refuses the model"):
        measure(package)


def test_the_batch_that_a_model_prefers_is_the_one_measured() -> None:
    assert preferred_rows(None) == 16
    assert preferred_rows(Batching(max_rows=32)) == 32
    assert preferred_rows(Batching(max_rows=32, preferred_rows=(2, 8))) == 8


def test_what_takes_more_than_the_recipe_allows_is_told_limit_by_limit(tmp_path: Path) -> None:
    manifest = make_package(tmp_path / "package").manifest
    taken = Footprint(row_us=900.0, p99_us=2_500.0, batch_rows=16, batch_us=9_000.0, memory_bytes=3 << 20)
    assert broken_limits(Gates(), manifest, taken, form="fp32") == []
    assert broken_limits(Gates(max_p99_ms=2.5, max_memory_mib=3.0, max_size_mib=1.0), manifest, taken, form="x") == []
    p99, memory, size = broken_limits(
        Gates(max_p99_ms=2.0, max_memory_mib=2.0, max_size_mib=0.001), manifest, taken, form="int8"
    )
    assert p99 == ("it takes too much: 2.5 ms at the 99th percentile of a single row (int8); max_p99_ms allows 2")
    assert "3 MiB of memory" in memory
    assert "max_size_mib allows 0.001" in size
