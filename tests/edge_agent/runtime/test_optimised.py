"""Optimised models: made once, verified each time, and dropped where they are of no use."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_agent.contract.errors import ModelLoadFailed
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.optimised import MODEL_FILE, WEIGHTS_FILE, OptimisedModels
from edge_agent.runtime.package import Package
from edge_agent.runtime.selftest import self_test
from tests.fakes.large_package import make_large_package
from tests.fakes.packages import INPUT, OUTPUT, make_package, reference_images
from tests.fakes.small_disk import run_on_full_disk


@pytest.fixture
def cache(tmp_path: Path) -> OptimisedModels:
    return OptimisedModels(tmp_path / "state/optimised", own=tmp_path / "state")


def _entries(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "state/optimised"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _answer(package: Package, cache: OptimisedModels | None) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    backend = OnnxBackend(package, cache=cache)
    self_test(backend, package.golden())
    outputs = backend.infer({INPUT: reference_images(5)})[OUTPUT]
    backend.close()
    return outputs


@pytest.mark.parametrize("external", [False, True])
def test_a_kept_model_answers_as_the_package_and_is_used_again(
    tmp_path: Path, cache: OptimisedModels, external: bool
) -> None:
    package = make_large_package(tmp_path / "package", weights_mib=2, external=external)
    plain = _answer(package, None)
    np.testing.assert_allclose(_answer(package, cache), plain, atol=1e-6)
    (entry,) = _entries(tmp_path)
    written = (entry / MODEL_FILE).stat().st_mtime_ns
    assert (entry / WEIGHTS_FILE).stat().st_size > 1 << 20
    np.testing.assert_allclose(_answer(package, cache), plain, atol=1e-6)
    assert (entry / MODEL_FILE).stat().st_mtime_ns == written


def test_packages_with_the_same_weights_share_an_entry_and_others_do_not(
    tmp_path: Path, cache: OptimisedModels
) -> None:
    packages = [
        make_large_package(tmp_path / str(index), version=version, seed=seed, weights_mib=2)
        for index, (version, seed) in enumerate([("1", 1), ("2", 1), ("3", 2)])
    ]
    for package in packages:
        _answer(package, cache)
    assert len(_entries(tmp_path)) == 2


@pytest.mark.parametrize("name", [MODEL_FILE, WEIGHTS_FILE, "entry.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_entry_is_dropped_and_made_anew(
    tmp_path: Path, cache: OptimisedModels, name: str, damage: str
) -> None:
    package = make_large_package(tmp_path / "package", weights_mib=2)
    plain = _answer(package, cache)
    (entry,) = _entries(tmp_path)
    data = bytearray((entry / name).read_bytes())
    if damage == "gone":
        (entry / name).unlink()
    else:
        data[len(data) // 2] ^= 0xFF
        (entry / name).write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    np.testing.assert_array_equal(_answer(package, cache), plain)
    assert json.loads((entry / "entry.json").read_text())["files"].keys() == {MODEL_FILE, WEIGHTS_FILE}
    assert cache.find(entry.name) == entry / MODEL_FILE


def test_an_entry_that_the_runtime_refuses_is_dropped_and_the_package_loaded(
    tmp_path: Path, cache: OptimisedModels, caplog: pytest.LogCaptureFixture
) -> None:
    package = make_large_package(tmp_path / "package", weights_mib=2)

    def rubbish(target: Path) -> None:
        target.write_bytes(b"no model")

    assert cache.make(cache.key(package, "fp32"), rubbish) is not None
    _answer(package, cache)
    assert _entries(tmp_path) == []
    assert "refuses the model" in caplog.text


def test_small_models_are_not_kept(tmp_path: Path, cache: OptimisedModels) -> None:
    _answer(make_package(tmp_path / "small"), cache)
    _answer(make_package(tmp_path / "state/packages/own", external_data=True), cache)
    assert _entries(tmp_path) == []


def test_weights_that_others_may_cut_short_are_always_loaded_from_the_agents_own_folder(
    tmp_path: Path, cache: OptimisedModels
) -> None:
    _answer(make_package(tmp_path / "models/foreign", external_data=True), cache)
    assert len(_entries(tmp_path)) == 1


def test_a_package_that_the_runtime_refuses_leaves_nothing_behind(tmp_path: Path, cache: OptimisedModels) -> None:
    package = make_large_package(tmp_path / "package", weights_mib=2)
    package.path("model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelLoadFailed, match="refuses the model"):
        OnnxBackend(package, cache=cache)
    assert _entries(tmp_path) == []


def test_entries_of_packages_that_are_gone_are_collected_and_what_a_crash_left(
    tmp_path: Path, cache: OptimisedModels
) -> None:
    old, new = (make_large_package(tmp_path / str(seed), seed=seed, weights_mib=2) for seed in (1, 2))
    _answer(old, cache)
    _answer(new, cache)
    (tmp_path / "state/optimised/.building-x").mkdir()
    cache.collect([new])
    assert [path.name for path in _entries(tmp_path)] == [cache.key(new, "fp32")]


def test_a_model_in_use_survives_its_collection(tmp_path: Path, cache: OptimisedModels) -> None:
    package = make_large_package(tmp_path / "package", weights_mib=2)
    backend = OnnxBackend(package, cache=cache)
    before = backend.infer({INPUT: reference_images(3)})[OUTPUT]
    cache.collect([])
    np.testing.assert_array_equal(backend.infer({INPUT: reference_images(3)})[OUTPUT], before)


_ON_A_FULL_DISK = """
import sys
from pathlib import Path
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.optimised import OptimisedModels
from edge_agent.runtime.package import Package
from edge_agent.runtime.selftest import self_test
package, state = Package.open(Path(sys.argv[1]), verify=True), Path(sys.argv[2])
self_test(OnnxBackend(package, cache=OptimisedModels(state / "optimised", own=state)), package.golden())
print([path.name for path in (state / "optimised").iterdir()])
"""


def test_a_full_disk_keeps_nothing_and_the_model_serves_all_the_same(tmp_path: Path) -> None:
    package = make_large_package(tmp_path / "package", weights_mib=2)
    state = tmp_path / "state"
    done = run_on_full_disk([sys.executable, "-c", _ON_A_FULL_DISK, str(package.folder), str(state)], state)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
