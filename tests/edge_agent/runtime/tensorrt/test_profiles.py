from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.constraint import AxisLimit, Constraint
from edge_agent.contract.errors import EngineBuildFailed
from edge_agent.contract.manifest import Batching
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.tensorrt.profiles import ShapeProfile, profiles_for


def signature(*shape: int | None, axes: tuple[AxisLimit, ...] = (), datatype: Datatype = Datatype.FP32) -> Signature:
    spec = TensorSpec(name="image", datatype=datatype, shape=shape, constraint=Constraint(axes=axes))
    return Signature(inputs=(spec,), outputs=(TensorSpec(name="out", datatype=Datatype.FP32, shape=(None, 2)),))


def test_without_batching_one_row_is_fastest_and_more_are_taken() -> None:
    profiles = profiles_for(signature(None, 3, 8, 8), None, {"image": (5, 3, 8, 8)})

    assert profiles == ((ShapeProfile("image", (1, 3, 8, 8), (1, 3, 8, 8), (16, 3, 8, 8)),),)


def test_with_batching_the_preferred_batch_is_fastest_and_the_single_row_has_a_profile_of_its_own() -> None:
    profiles = profiles_for(signature(None, 4), Batching(max_rows=32, preferred_rows=(4, 8)), {})

    assert profiles == (
        (ShapeProfile("image", (1, 4), (8, 4), (32, 4)),),
        (ShapeProfile("image", (1, 4), (1, 4), (1, 4)),),
    )


def test_a_model_of_a_fixed_batch_has_one_shape() -> None:
    profiles = profiles_for(signature(2, 4), Batching(max_rows=32), {})

    assert profiles == ((ShapeProfile("image", (2, 4), (2, 4), (2, 4)),),)


def test_other_dynamic_axes_go_as_far_as_the_signature_says_and_are_fastest_as_the_golden_samples_are() -> None:
    limits = (AxisLimit(axis=2, minimum=16, maximum=512),)

    profiles = profiles_for(signature(None, 3, None, axes=limits), None, {"image": (1, 3, 224)})

    assert profiles == ((ShapeProfile("image", (1, 3, 16), (1, 3, 224), (16, 3, 512)),),)


def test_limits_of_the_batch_axis_count_too() -> None:
    limits = (AxisLimit(axis=0, minimum=2, maximum=6),)

    (profile, _) = profiles_for(signature(None, 3, axes=limits), Batching(max_rows=32), {})

    assert profile == (ShapeProfile("image", (2, 3), (6, 3), (6, 3)),)


def test_a_dynamic_axis_without_a_maximum_is_refused_for_good_and_says_what_to_add() -> None:
    with pytest.raises(EngineBuildFailed, match=r"input 'image': axis 2 is dynamic .* a maximum for axis 2") as caught:
        profiles_for(signature(None, 3, None), None, {"image": (1, 3, 224)})
    assert caught.value.is_final


def test_text_is_refused_for_good() -> None:
    with pytest.raises(EngineBuildFailed, match="'image' is text") as caught:
        profiles_for(signature(None, 1, datatype=Datatype.BYTES), None, {})
    assert caught.value.is_final


@given(
    most=st.integers(1, 300),
    preferred=st.integers(1, 300),
    limit=st.tuples(st.integers(1, 40), st.integers(0, 40)),
    golden=st.integers(1, 100),
)
def test_minimum_optimum_and_maximum_never_cross(
    most: int, preferred: int, limit: tuple[int, int], golden: int
) -> None:
    smallest, span = limit
    axes = (AxisLimit(axis=1, minimum=smallest, maximum=smallest + span),)
    batching = Batching(max_rows=most, preferred_rows=(preferred,) if preferred <= most else ())

    for profile in profiles_for(signature(None, None, axes=axes), batching, {"image": (1, golden)}):
        for each in profile:
            for low, usual, high in zip(each.minimum, each.optimum, each.maximum, strict=True):
                assert 1 <= low <= usual <= high
