from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edge_agent.contract.errors import PackageError
from edge_agent.contract.profile import (
    Feature,
    FeatureCounts,
    Projection,
    count,
    count_batch,
    decode_profile,
    encode_profile,
    merge,
    project,
    quantile_edges,
)
from tests.edge_agent.contract.golden_files import PROFILE, remade
from tests.edge_agent.contract.strategies import counts_in, fast

any_float = st.floats(width=64)
vectors = hnp.arrays(np.float64, st.integers(0, 40), elements=any_float | st.sampled_from([0.0, 0.5, 1.0, 2.0]))


def feature(
    projection: Projection = Projection.ELEMENT, edges: tuple[float, ...] = (0, 1, 2), index: int = 0
) -> Feature:
    return Feature(name="f", tensor="x", side="input", projection=projection, edges=edges, index=index)


def values(projection: Projection, array: Any, index: int = 0) -> list[float]:
    found: list[float] = project(feature(projection, index=index), np.asarray(array)).tolist()
    return found


def test_each_value_falls_into_the_bin_that_the_edges_say() -> None:
    counts = count(feature(), np.array([-0.1, 0.0, 0.999, 1.0, 2.0, 2.1, math.nan, math.inf, -math.inf]), missing=4)
    assert counts.bins == (2, 2)  # the last bin holds its upper edge too
    assert (counts.under, counts.over, counts.nan, counts.inf, counts.missing) == (1, 1, 1, 2, 4)
    assert counts.rows == 13
    assert counts.cells().tolist() == [1, 2, 2, 1, 1, 2, 4]
    assert counts.total == pytest.approx(5.999 + 0.0)
    assert counts.squares == pytest.approx(0.01 + 0.999**2 + 1 + 4 + 2.1**2)


def test_values_just_beside_an_edge_are_on_their_side_of_it() -> None:
    below, above = np.nextafter([0.0, 1.0, 2.0], -math.inf), np.nextafter([0.0, 1.0, 2.0], math.inf)
    assert count(feature(), below).cells().tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert count(feature(), above).cells().tolist() == [0, 1, 1, 1, 0, 0, 0]


def test_nothing_counts_as_nothing() -> None:
    assert count(feature(), np.empty(0)) == FeatureCounts(bins=(0, 0))
    assert project(feature(), np.empty((0, 3))).shape == (0,)


def test_moments_that_overflow_are_infinite_without_a_warning() -> None:
    counts = count(feature(), np.array([1e200, 1e308, 1e308]))
    assert (counts.over, counts.total, counts.squares) == (3, math.inf, math.inf)


@fast
@given(vectors, st.integers(0, 3))
def test_every_row_is_counted_once(rows: NDArray[np.float64], missing: int) -> None:
    counts = count(feature(edges=(0.0, 0.5, 1.0, 2.0)), rows, missing=missing)
    assert counts.rows == len(rows) + missing
    assert int(counts.cells().sum()) == counts.rows


@fast
@given(vectors, st.data())
def test_counting_in_parts_and_merging_is_counting_at_once(rows: NDArray[np.float64], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    one = feature(edges=(0.0, 0.5, 1.0, 2.0))
    parts = count(one, rows[:cut]).merge(count(one, rows[cut:]))
    assert parts.cells().tolist() == count(one, rows).cells().tolist()


@fast
@given(counts_in(3), counts_in(3), counts_in(3))
def test_merging_is_associative_and_commutative_with_a_neutral_element_and_exact(
    a: FeatureCounts, b: FeatureCounts, c: FeatureCounts
) -> None:
    nothing = FeatureCounts(bins=(0, 0, 0))
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(b) == b.merge(a)
    assert a.merge(nothing) == a == nothing.merge(a)
    assert a.merge(b).rows == a.rows + b.rows
    assert merge({"f": a, "g": b}, {"f": c}) == merge({"f": c}, {"g": b, "f": a}) == {"f": a.merge(c), "g": b}


def test_merging_leaves_its_arguments_and_refuses_other_bins() -> None:
    a, b = {"f": FeatureCounts(bins=(1, 2))}, {"f": FeatureCounts(bins=(3, 4))}
    assert merge(a, b)["f"].bins == (4, 6)
    assert (a["f"].bins, b["f"].bins) == ((1, 2), (3, 4))
    with pytest.raises(PackageError, match="2 and 3 bins"):
        a["f"].merge(FeatureCounts(bins=(1, 2, 3)))


def test_projections_of_rows() -> None:
    rows = np.array([[1, 5, 3], [4, 4, 1]], np.float32)
    assert values(Projection.ELEMENT, rows, index=2) == [3, 1]
    assert values(Projection.MEAN, rows) == [3, 3]
    assert values(Projection.STD, rows) == pytest.approx([np.std([1, 5, 3]), np.std([4, 4, 1])])
    assert values(Projection.MAXIMUM, rows) == values(Projection.CONFIDENCE, rows) == [5, 4]
    assert values(Projection.MARGIN, rows) == [2, 0]
    assert values(Projection.CLASS, rows) == [1, 0]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", ">f4", "float64"])
def test_numbers_of_every_kind_project(dtype: str) -> None:
    assert values(Projection.MEAN, np.array([[0, 1]], dtype)) == [0.5]
    assert values(Projection.MARGIN, np.array([[0, 1]], dtype)) == [1]
    assert values(Projection.ELEMENT, np.array([1, 0], dtype)) == [1, 0]


def test_an_output_of_one_class_has_its_own_value_as_margin() -> None:
    assert values(Projection.MARGIN, np.array([[0.75], [0.5]])) == [0.75, 0.5]
    assert values(Projection.CLASS, np.array([[0.75]])) == [0]


def test_a_nan_in_a_row_is_a_nan_of_the_row_whatever_the_projection() -> None:
    image = np.ones((2, 1, 3, 3))
    image[0, 0, 1, 1] = math.nan
    for projection in Projection:
        found = values(projection, image, index=4)
        assert math.isnan(found[0]), projection
        assert math.isfinite(found[1]), projection


def test_infinities_never_warn() -> None:
    image = np.zeros((1, 1, 2, 2))
    image[0] = [[math.inf, -math.inf], [math.inf, math.inf]]
    for projection in Projection:
        assert count(feature(projection), project(feature(projection), image)).rows == 1


def test_projections_of_images() -> None:
    step = np.zeros((1, 1, 4, 4))
    step[..., 2:] = 3.0
    assert values(Projection.GRADIENT, step) == [1.0]  # 3 over one of three neighbour pairs, and nothing downwards
    assert values(Projection.GRADIENT, step[:, 0]) == [1.0]
    slanted = np.zeros((1, 1, 4, 4))
    slanted[0, 0, :2, 0] = slanted[0, 0, 2:, 3] = 1.0
    assert values(Projection.CENTROID, slanted) == pytest.approx([3.0], abs=1e-6)
    assert values(Projection.CENTROID, np.zeros((1, 1, 4, 4))) == [0.0]


@pytest.mark.parametrize(
    ("projection", "array", "index", "says"),
    [
        (Projection.ELEMENT, np.zeros((2, 3)), 3, "has 3 elements per row, none at index 3"),
        (Projection.MEAN, np.zeros((2, 0)), 0, "has 0 elements per row"),
        (Projection.MARGIN, np.zeros((2, 0)), 0, "has 0 elements per row"),
        (Projection.MEAN, np.array([[b"a"]], dtype=object), 0, "is object of shape (1, 1), not rows of numbers"),
        (Projection.MEAN, np.array(1.0), 0, "not rows of numbers"),
        (Projection.GRADIENT, np.zeros((2, 9)), 0, "has rows of shape (9,); gradient needs at least 2 x 2"),
        (Projection.CENTROID, np.zeros((2, 1, 1, 9)), 0, "centroid needs at least 2 x 2"),
    ],
)
def test_a_feature_that_does_not_fit_its_tensor_says_so(
    projection: Projection, array: NDArray[Any], index: int, says: str
) -> None:
    with pytest.raises(PackageError, match=r"^feature f: tensor 'x' ") as refused:
        project(feature(projection, index=index), array)
    assert says in str(refused.value)


def test_a_batch_is_counted_by_feature_and_an_absent_tensor_is_missing() -> None:
    output = Feature(name="o", tensor="y", side="output", projection=Projection.MARGIN, edges=(0, 1))
    x, y = np.array([[0.5], [1.5], [9.0]]), np.array([[0.5, 0.25], [1, 0], [0, 5]])
    counts = count_batch((feature(), output), {"x": x}, {"y": y})
    assert counts["f"].bins == (1, 1)
    assert counts["f"].over == 1
    assert counts["o"].bins == (2,)
    assert counts["o"].over == 1
    assert count_batch((feature(),), {}, {"y": y})["f"] == FeatureCounts(bins=(0, 0), missing=3)
    assert count_batch((output,), {"x": x}, {})["o"] == FeatureCounts(bins=(0,), missing=3)
    with pytest.raises(PackageError, match="without tensors"):
        count_batch((feature(),), {}, {})


@fast
@given(hnp.arrays(np.float64, st.integers(1, 200), elements=any_float), st.integers(1, 40))
def test_quantile_edges_ascend_and_hold_every_finite_value(rows: NDArray[np.float64], bins: int) -> None:
    finite = rows[np.isfinite(rows)]
    if finite.size == 0:
        with pytest.raises(PackageError, match="no finite value"):
            quantile_edges(rows, bins)
        return
    edges = quantile_edges(rows, bins)
    assert 2 <= len(edges) <= bins + 1
    counts = count(feature(edges=edges), finite)
    assert (counts.under, counts.over) == (0, 0)
    assert sum(counts.bins) == len(finite)


def test_a_sum_that_overflows_to_both_sides_is_told_as_such() -> None:
    largest = np.finfo(np.float64).max
    # Partial sums of both signs overflow: numpy adds long arrays by parts.
    counts = count(feature(edges=(-largest, largest)), np.repeat([largest, -largest], 128))
    assert counts.bins == (256,)
    assert not math.isfinite(counts.total)


@fast
@given(st.lists(st.floats(-1e308, 1e308), min_size=1, max_size=12, unique=True), st.integers(12, 32))
def test_few_distinct_values_get_a_bin_each(distinct: list[float], bins: int) -> None:
    edges = quantile_edges(np.repeat(np.array(distinct), 3), bins)
    assert count(feature(edges=edges), np.array(distinct)).bins == (1,) * len(set(distinct))


def test_the_largest_floats_still_get_ascending_edges() -> None:
    largest = np.finfo(np.float64).max
    for extremes in ([largest], [-largest, largest], [np.nextafter(largest, 0), largest], [-largest]):
        edges = quantile_edges(np.array(extremes))
        assert sum(count(feature(edges=edges), np.array(extremes)).bins) == len(extremes)


def test_quantile_bins_share_the_values_out_evenly() -> None:
    rows = np.random.default_rng(0).normal(size=32_000)
    counts = count(feature(edges=quantile_edges(rows)), rows)
    assert len(counts.bins) == 32
    assert max(counts.bins) - min(counts.bins) <= 2


def test_classes_have_a_bin_each() -> None:
    assert quantile_edges(np.arange(4.0)) == (-0.5, 0.5, 1.5, 2.5, 3.5)


@pytest.mark.parametrize(
    "edges", [(), (1.0,), (1.0, 1.0), (2.0, 1.0), (0.0, math.nan), (math.nan, 1.0), (0.0, math.inf)]
)
def test_a_feature_needs_ascending_finite_edges(edges: tuple[float, ...]) -> None:
    with pytest.raises(PackageError, match="ascending, finite bin edges"):
        feature(edges=edges)


def test_a_feature_has_a_side_and_no_negative_index() -> None:
    with pytest.raises(PackageError, match="side is 'inside'"):
        remade(feature(), side="inside")
    with pytest.raises(PackageError, match="index -1 is negative"):
        feature(index=-1)


def test_a_profile_whose_parts_disagree_is_refused() -> None:
    with pytest.raises(PackageError, match="differ"):
        remade(PROFILE, counts={})
    with pytest.raises(PackageError, match="feature confidence: 3 counts for 2 bins"):
        remade(PROFILE, counts={**PROFILE.counts, "confidence": FeatureCounts(bins=(1, 2, 3))})
    with pytest.raises(PackageError, match=r"feature image\.3: 1 counts of crane-3 for 3 bins"):
        remade(PROFILE, devices={"crane-3": {"image.3": FeatureCounts(bins=(1,))}})
    with pytest.raises(PackageError, match="counts of crane-3 of blur, which is none of the features"):
        remade(PROFILE, devices={"crane-3": {"blur": FeatureCounts(bins=(1,))}})
    with pytest.raises(PackageError, match="do not ascend"):
        remade(PROFILE, calibration=((0.5, 0.1), (0.5, 0.2)))


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x81\xa1\xff\x00", b"\x91" * 100_000, encode_profile(PROFILE)[:-1]])
def test_bytes_that_are_no_profile_are_the_package_s_fault(data: bytes) -> None:
    with pytest.raises(PackageError, match=r"^reference\.profile: "):
        decode_profile(data)


def test_a_profile_from_before_devices_had_references_of_their_own_reads_as_having_none() -> None:
    older = msgspec.to_builtins(PROFILE)
    del older["devices"]
    assert decode_profile(msgspec.msgpack.encode(older)) == remade(PROFILE, devices={})


def test_a_rule_broken_inside_a_profile_is_said_with_the_file_s_name() -> None:
    broken = msgspec.to_builtins(PROFILE)
    broken["features"][0]["edges"] = [1.0, 0.0, 2.0]
    with pytest.raises(PackageError, match=r"^reference\.profile: feature confidence: needs at least two ascending"):
        decode_profile(msgspec.msgpack.encode(broken))
