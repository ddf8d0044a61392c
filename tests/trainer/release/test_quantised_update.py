from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edge_agent.contract.delta.apply import apply_delta
from edge_agent.contract.delta.make import make_delta
from edge_agent.contract.stored_tensors import StoredFile
from trainer.errors import UpdateNotQuantisable
from trainer.release.quantised_update import (
    MOST_CODE,
    Difference,
    apply_codes,
    balanced_codes,
    codes_of,
    step_of,
)
from trainer.release.stored import stored_tensors

DATA = "model.onnx.data"
Arrays = dict[str, NDArray[Any]]

WEIGHTS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 80)),
    elements=st.floats(-100, 100, width=32)
    | st.floats(-(2.0**-100), 2.0**-100, width=32)
    | st.just(0.0)
    | st.just(-0.0),
)


def model(folder: Path, weights: Mapping[str, NDArray[Any]]) -> Path:
    """An ONNX file with weights beside it, as the exporter writes one."""
    folder.mkdir()
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([], "g", [], [], initializer=tensors)
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph), str(path), save_as_external_data=True, location=DATA, size_threshold=1024)
    return path


def some(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def read(path: Path) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=WEIGHTS, seed=st.integers(0, 99), size=st.sampled_from([1e-7, 1e-3, 1.0, 50.0]), factor=st.floats(0.05, 4))
def test_released_weights_are_the_base_and_whole_steps_bit_for_bit_after_a_round_trip_through_files(
    base: NDArray[np.float32], seed: int, size: float, factor: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wide = np.resize(base, (base.shape[0] + 4, 100))
    moved = (wide + size * np.random.default_rng(seed).normal(size=wide.shape)).astype(np.float32)
    place = tmp_path_factory.mktemp("update")
    before, after = model(place / "before", {"w": wide}), model(place / "after", {"w": moved})
    try:
        rounded = Difference(after, before).round_to(place / "rounded", factor=factor)
    except UpdateNotQuantisable:
        assert step_of(wide.ravel(), moved.ravel(), factor) is None
        return
    (tensor,) = rounded.layout.tensors
    assert tensor.step is not None
    released = np.fromfile(place / "rounded", "<f4")
    # What a device does: the codes, its own base, two operations.
    codes = codes_of(wide.ravel(), released, tensor.step)
    assert apply_codes(wide.ravel(), tensor.step, codes).tobytes() == released.tobytes()
    assert np.abs(released.astype(np.float64) - moved.ravel()).max() <= 1.01 * tensor.step + np.spacing(
        np.float32(np.abs(moved).max())
    )
    assert rounded.layout.base == hashlib.sha256((place / "before" / DATA).read_bytes()).hexdigest()
    delta, made = io.BytesIO(), io.BytesIO()
    layouts = stored_tensors(before).files[DATA], rounded.layout
    with (place / "before" / DATA).open("rb") as old, (place / "rounded").open("rb") as new:
        head = make_delta(old, new, delta, base_layout=layouts[0], layout=layouts[1])
        delta.seek(0)
        apply_delta(delta, old, made, base_sha256=head.base_sha256, sha256=head.sha256, size_bytes=head.size_bytes)
    assert made.getvalue() == released.tobytes()


@settings(max_examples=200, deadline=None)
@given(
    step=st.floats(1e-20, 1e20),
    codes=arrays.arrays(np.int32, 40, elements=st.integers(-MOST_CODE, MOST_CODE)),
    base=arrays.arrays(np.float32, 40, elements=st.floats(-1e10, 1e10, width=32)),
)
def test_a_step_times_a_code_is_exact_so_that_a_fused_multiply_add_gives_the_same(
    step: float, codes: NDArray[np.int32], base: NDArray[np.float32]
) -> None:
    moved = np.zeros(400, np.float32)
    moved[::2] = np.float32(step)
    coarse = step_of(np.zeros(400, np.float32), moved, 1.0)
    assert coarse is not None
    assert coarse == float(np.float32(coarse))
    exact = coarse * codes.astype(np.float64)
    assert np.array_equal((np.float32(coarse) * codes.astype(np.float32)).astype(np.float64), exact)
    fused = (base.astype(np.longdouble) + exact).astype(np.float32)  # one rounding of the exact sum
    assert apply_codes(base, coarse, codes).tobytes() == fused.tobytes()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.1, 3), row=st.integers(1, 300))
def test_each_rows_errors_even_out_and_no_weight_is_more_than_a_step_off(seed: int, factor: float, row: int) -> None:
    base, moved = some(seed, 5 * row), some(seed, 5 * row) + 0.01 * some(seed + 1, 5 * row)
    step = step_of(base, moved, factor)
    assert step is not None
    codes = balanced_codes(base, moved, step, row=row)
    wanted = (moved.astype(np.float64) - base) / step
    assert np.abs(codes - wanted).max() <= 1.0
    assert np.abs((codes - wanted).reshape(-1, row).sum(axis=1)).max() <= 0.5 + 1e-6
    assert np.abs(codes_of(base, moved, step) - wanted).max() <= 0.5 + 1e-9


def test_weights_that_did_not_change_stay_as_they_are_to_the_bit() -> None:
    base = some(1, 4 * 100)
    moved = base.copy()
    moved[::7] += np.float32(0.1)
    step = step_of(base, moved, 0.5)
    assert step is not None
    assert 0.045 < step < 0.055, "the root mean square is that of what changed"
    codes = balanced_codes(base, moved, step, row=100)
    still = np.flatnonzero(moved == base)
    assert not codes[still].any()


def test_small_tensors_biases_and_other_types_are_released_as_they_were_trained(tmp_path: Path) -> None:
    before: Arrays = {
        "w": some(1, 64, 64),
        "bias": some(2, 400),
        "small": some(3, 10, 25),
        "count": np.arange(400, dtype=np.int64),
        "frozen": some(5, 30, 30),
    }
    after: Arrays = before | {
        "w": some(1, 64, 64) + 0.01 * some(6, 64, 64),
        "bias": some(7, 400),
        "small": some(8, 10, 25),
        "count": np.arange(400, dtype=np.int64)[::-1].copy(),
    }
    old, new = model(tmp_path / "old", before), model(tmp_path / "new", after)
    rounded = Difference(new, old).round_to(tmp_path / "rounded", factor=1.0)
    assert {tensor.name for tensor in rounded.layout.tensors if tensor.step is not None} == {"w"}
    assert 1.5 < rounded.bits < 2.6
    (tmp_path / "rounded").replace(tmp_path / "new" / DATA)
    released = read(new)
    for name in ("bias", "small", "count", "frozen"):
        assert released[name].tobytes() == after[name].tobytes(), name
    assert 0 < np.abs(np.asarray(released["w"] - after["w"], np.float64)).mean() < 0.005


def test_equal_arguments_give_equal_bytes_and_a_finer_step_is_nearer(tmp_path: Path) -> None:
    weights = some(1, 80, 90)
    old = model(tmp_path / "old", {"w": weights})
    new = model(tmp_path / "new", {"w": weights + 0.01 * some(2, 80, 90)})
    exact = np.fromfile(tmp_path / "new" / DATA, "<f4")
    off = []
    for factor in (2.0, 1.0, 0.3):
        for name in ("a", "b"):
            Difference(new, old).round_to(tmp_path / name, factor=factor)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        off.append(float(np.abs(np.fromfile(tmp_path / "a", "<f4") - exact).mean()))
    assert off[0] > off[1] > off[2] > 0


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"w": some(1, 32, 32)}, {"v": some(1, 32, 32)}, "the parent has no tensor 'v'"),
        ({"w": some(1, 32, 32)}, {"w": some(1, 32, 48)}, r"tensor 'w' is fp32\[32, 48\], the parent's fp32\[32, 32\]"),
        ({"w": some(1, 32, 32)}, {"w": some(1, 16, 64)}, r"tensor 'w' is fp32\[16, 64\], the parent's fp32\[32, 32\]"),
        ({"w": some(1, 32, 32).astype(np.float16)}, {"w": some(1, 32, 32)}, r"the parent's fp16\[32, 32\]"),
        ({"w": some(1, 300)}, {"w": some(2, 300)}, "no tensor is large enough"),
        ({"w": some(1, 9)}, {"w": some(2, 9)}, "the model has no weights in a file of their own"),
        ({"w": some(1, 9)}, {"w": some(2, 32, 32)}, "its parent has no weights in a file of their own"),
    ],
)
def test_what_is_no_difference_of_the_parent_is_said(before: Arrays, after: Arrays, said: str, tmp_path: Path) -> None:
    with pytest.raises(UpdateNotQuantisable, match=said):
        Difference(model(tmp_path / "new", after), model(tmp_path / "old", before))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_tensor_with_a_value_that_is_no_number_is_left_alone(value: float, side: str, tmp_path: Path) -> None:
    before, after = some(1, 32, 32), some(2, 32, 32)
    (before if side == "before" else after)[3, 4] = value
    old, new = model(tmp_path / "old", {"w": before}), model(tmp_path / "new", {"w": after})
    with pytest.raises(UpdateNotQuantisable, match="no large tensor changed in a way that can be rounded"):
        Difference(new, old).round_to(tmp_path / "rounded", factor=1.0)
    both = model(tmp_path / "both", {"w": after, "v": some(4, 40, 40)})
    base = model(tmp_path / "base", {"w": before, "v": some(3, 40, 40)})
    layout = Difference(both, base).round_to(tmp_path / "rounded", factor=1.0).layout
    assert [tensor.name for tensor in layout.tensors if tensor.step is not None] == ["v"]


def test_an_outlier_that_needs_too_large_a_code_leaves_its_tensor_alone() -> None:
    base, moved = np.zeros(4096, np.float32), np.full(4096, 1e-6, np.float32)
    moved[7] = 10.0
    assert step_of(base, moved, 0.001) is None
    assert step_of(base, moved, 1.0) is not None


def test_an_update_too_small_for_fp32s_normal_numbers_is_left_alone() -> None:
    base, moved = np.zeros(400, np.float32), np.full(400, 1e-38, np.float32)
    assert step_of(base, moved, 0.3) is None


def test_nothing_changed_is_nothing_to_round(tmp_path: Path) -> None:
    weights = {"w": some(1, 64, 64)}
    with pytest.raises(UpdateNotQuantisable, match="no large tensor changed"):
        Difference(model(tmp_path / "new", weights), model(tmp_path / "old", weights)).round_to(
            tmp_path / "rounded", factor=1.0
        )


def test_tensors_that_lie_elsewhere_in_the_parents_file_are_found(tmp_path: Path) -> None:
    w, v = some(1, 64, 64), some(2, 50, 50)
    old = model(tmp_path / "old", {"w": w, "v": v})
    new = model(tmp_path / "new", {"v": v + 0.01 * some(4, 50, 50), "w": w + 0.01 * some(3, 64, 64)})
    layout: StoredFile = Difference(new, old).round_to(tmp_path / "rounded", factor=0.5).layout
    released = np.fromfile(tmp_path / "rounded", "<f4")
    for tensor in layout.tensors:
        base = (w if tensor.name == "w" else v).ravel()
        part = released[tensor.offset // 4 :][: tensor.count]
        assert tensor.step is not None
        assert apply_codes(base, tensor.step, codes_of(base, part, tensor.step)).tobytes() == part.tobytes()
