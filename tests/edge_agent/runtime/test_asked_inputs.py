"""What applications send is remembered, and a version that would refuse it is known before it comes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.constraint import AxisLimit, Constraint
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.asked import Asked, Window
from edge_agent.runtime.asked_inputs import ASKED_FILE, AskedInputs, pinned, still_fits
from edge_agent.runtime.slots import LoadedModel, Slots, load
from edge_agent.serving.inference import Inference
from edge_agent.serving.request import InferenceRequest, WantedOutput
from tests.edge_agent.serving.inference_parts import Ear
from tests.fakes.packages import INPUT, OUTPUT, PIXELS, make_package, make_signature, reference_images

DAY_S = 86_400.0
SIGNATURE = make_signature()


class Wanted(NamedTuple):
    name: str


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(make_package(tmp_path_factory.mktemp("asked") / "digits"))


def asked_for(loaded: LoadedModel, *rows: int, outputs: tuple[str, ...] | None = None) -> Asked:
    asked = AskedInputs()
    for count in rows:
        asked.note(loaded, {INPUT: reference_images(count)}, None if outputs is None else list(map(Wanted, outputs)))
    found = asked.of("digits")
    assert found is not None
    return found


def changed(*, shape: tuple[int | None, ...] = (None, PIXELS), **settings: object) -> Signature:
    spec = msgspec.structs.replace(SIGNATURE.inputs[0], shape=shape, **settings)
    return msgspec.structs.replace(SIGNATURE, inputs=(spec,))


def test_the_same_signature_fits_whatever_was_sent(loaded: LoadedModel) -> None:
    assert still_fits(SIGNATURE, asked_for(loaded, 1, 32)) == []


def test_where_nobody_has_asked_everything_fits(loaded: LoadedModel) -> None:
    assert AskedInputs().of("digits") is None
    assert still_fits(changed(shape=(7, 7)), None) == []
    assert still_fits(changed(shape=(7, 7)), Asked()) == []


def test_a_batch_that_became_fixed_is_told_with_the_rows_that_are_sent(loaded: LoadedModel) -> None:
    fixed = changed(shape=(1, PIXELS))
    assert still_fits(fixed, asked_for(loaded, 1, 1)) == []
    assert still_fits(fixed, asked_for(loaded, 1, 32)) == [
        "applications send input 'image' in shapes of [1 to 32, 64], it takes [1, 64]"
    ]


def test_a_limit_on_an_axis_is_held_against_what_is_sent(loaded: LoadedModel) -> None:
    limited = changed(constraint=Constraint(axes=(AxisLimit(axis=0, minimum=1, maximum=16),)))
    assert still_fits(limited, asked_for(loaded, 16)) == []
    assert still_fits(limited, asked_for(loaded, 17)) == [
        "applications send input 'image' in shapes of [17, 64], it takes [-1, 64], axis 0 of 1 to 16"
    ]


def test_other_names_datatypes_and_axes_are_told(loaded: LoadedModel) -> None:
    asked = asked_for(loaded, 1)
    assert still_fits(changed(name="picture"), asked) == [
        "applications send input 'image', which it does not have; it has: picture",
        "it requires input 'picture', which no application sends",
    ]
    assert still_fits(changed(datatype=Datatype.FP16), asked) == [
        "applications send input 'image' as FP32, it takes FP16"
    ]
    assert still_fits(changed(shape=(None, 8, 8)), asked) == [
        "applications send input 'image' in shapes of [1, 64], it takes [-1, 8, 8]"
    ]


def test_an_input_that_is_new_breaks_every_application(loaded: LoadedModel) -> None:
    age = TensorSpec(name="age", datatype=Datatype.FP32, shape=(None, 1))
    both = msgspec.structs.replace(SIGNATURE, inputs=(*SIGNATURE.inputs, age))
    assert still_fits(both, asked_for(loaded, 1)) == ["it requires input 'age', which no application sends"]


def test_outputs_that_are_read_must_stay(loaded: LoadedModel) -> None:
    renamed = msgspec.structs.replace(
        SIGNATURE, outputs=(msgspec.structs.replace(SIGNATURE.outputs[0], name="scores"),)
    )
    assert still_fits(renamed, asked_for(loaded, 1)) == [
        "applications get, as they ask for all, output 'probabilities', which it does not give; it gives: scores"
    ]
    assert still_fits(renamed, asked_for(loaded, 1, outputs=(OUTPUT,))) == [
        "applications ask for output 'probabilities', which it does not give; it gives: scores"
    ]
    halved = msgspec.structs.replace(
        SIGNATURE, outputs=(msgspec.structs.replace(SIGNATURE.outputs[0], datatype=Datatype.FP16),)
    )
    assert still_fits(halved, asked_for(loaded, 1, outputs=(OUTPUT,))) == [
        "applications ask for output 'probabilities' as FP32, it gives FP16"
    ]
    more = msgspec.structs.replace(
        SIGNATURE, outputs=(*SIGNATURE.outputs, TensorSpec(name="more", datatype=Datatype.FP32, shape=(None, 1)))
    )
    assert still_fits(more, asked_for(loaded, 1)) == []


def test_an_output_that_nobody_reads_may_go() -> None:
    asked = Asked(
        version="1",
        takes={INPUT: Datatype.FP32},
        gives={OUTPUT: Datatype.FP32, "debug": Datatype.FP32},
        now=Window(axes={INPUT: ((1, 1), (PIXELS, PIXELS))}, outputs={OUTPUT}),
    )
    assert still_fits(SIGNATURE, asked) == []


def test_a_version_that_is_asked_for_by_name_is_told_and_keeps_no_other_away(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    slots = Slots()
    slots.install(loaded)
    asked = AskedInputs(slots.take_versions_asked)
    inference = Inference(Ear(), threads=1, asked=asked)
    for version in (None, "1"):
        with slots.lease("digits", version) as model:
            inference.answer(model, InferenceRequest("", {INPUT: reference_images(1)}))
        text = pinned(asked.of("digits"))
        assert text.startswith("applications ask for version '1' by its name") is (version is not None)
    assert asked.refusals("digits", SIGNATURE) == []
    assert "ask for version '1'" in caplog.text
    inference.close()


def test_versions_that_serve_no_more_are_nobodys_wish(tmp_path: Path) -> None:
    slots = Slots()
    asked = AskedInputs(slots.take_versions_asked)
    for version in ("1", "2"):
        new = load(make_package(tmp_path / version, version=version))
        slots.install(new)
        with slots.lease("digits", "1" if version == "1" else None) as model:
            asked.note(model, {INPUT: reference_images(1)}, None)
    assert pinned(asked.of("digits")) == ""
    slots.close()


def test_serving_notes_what_it_answers_alone_later_and_together(loaded: LoadedModel) -> None:
    asked = AskedInputs()
    inference = Inference(Ear(), threads=1, asked=asked)
    inference.answer(loaded, InferenceRequest("", {INPUT: reference_images(1)}, monitored=False))
    assert asked.of("digits") is None, "a probe is no application"
    inference.answer(loaded, InferenceRequest("", {INPUT: reference_images(5)}, (WantedOutput(OUTPUT),)))
    found = asked.of("digits")
    assert found is not None
    assert (found.now.axes, found.now.outputs) == ({INPUT: ((5, 5), (PIXELS, PIXELS))}, {OUTPUT})
    asked.left = 0
    inference.together.answer(loaded, InferenceRequest("", {}), {INPUT: reference_images(4)}, [1, 2, 3, 4])
    found = asked.of("digits")
    assert found is not None
    assert (found.now.axes[INPUT][0], found.now.all_outputs) == ((1, 5), True)
    inference.close()


def test_few_requests_are_all_looked_at_and_many_now_and_then(loaded: LoadedModel) -> None:
    clock = Clock()
    asked = AskedInputs(steady=clock, uniform=lambda: 0.5)
    looks = 0
    for _ in range(20):
        clock.now_s += 1.0
        asked.left -= 1
        if asked.left < 0:
            looks += 1
            asked.note(loaded, {INPUT: reference_images(1)}, None)
    assert looks == 20
    looks = 0
    for _ in range(20_000):  # in one second
        clock.now_s += 1 / 20_000
        asked.left -= 1
        if asked.left < 0:
            looks += 1
            asked.note(loaded, {INPUT: reference_images(1)}, None)
    assert 10 <= looks <= 40


def test_looks_that_come_all_at_once_are_no_harm(loaded: LoadedModel) -> None:
    asked = AskedInputs(steady=lambda: 0.0)
    for _ in range(1000):
        asked.note(loaded, {INPUT: reference_images(1)}, None)
    assert 0 <= asked.left <= 20_000


def test_it_outlives_a_restart_and_is_written_only_where_it_changed(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / ASKED_FILE
    asked = AskedInputs()
    asked.note(loaded, {INPUT: reference_images(3)}, None)
    assert asked.save(path)
    asked.note(loaded, {INPUT: reference_images(3)}, None)
    assert not asked.save(path)
    again = AskedInputs()
    again.restore(path)
    assert again.of("digits") == asked.of("digits")
    again.note(loaded, {INPUT: reference_images(9)}, [Wanted(OUTPUT)])
    found = again.of("digits")
    assert found is not None
    assert found.now.axes[INPUT][0] == (3, 9)
    assert path.stat().st_size < 500


def test_a_damaged_file_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / ASKED_FILE
    asked = AskedInputs()
    asked.restore(path)
    for data in (b"", b"{", b"\xff\xfe", b'{"models": {"digits": {"takes": {"image": "FP31"}}}}'):
        path.write_bytes(data)
        asked.restore(path)
        assert asked.of("digits") is None
    assert "learned anew" in caplog.text


def test_what_was_not_sent_for_long_is_forgotten(loaded: LoadedModel, tmp_path: Path) -> None:
    clock = Clock()
    asked = AskedInputs(clock=clock)
    asked.note(loaded, {INPUT: reference_images(32)}, [Wanted(OUTPUT)])
    for days, expected in ((14, True), (28, False)):
        clock.now_s = 1_700_000_000.0 + days * DAY_S + 1
        asked.save(tmp_path / ASKED_FILE)
        asked.note(loaded, {INPUT: reference_images(1)}, None)
        found = asked.of("digits")
        assert bool(still_fits(changed(shape=(1, PIXELS)), found)) is expected


def test_a_clock_that_jumps_forgets_nothing_that_was_sent_before_it_was_off(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    clock = Clock()
    asked = AskedInputs(clock=clock)
    asked.note(loaded, {INPUT: reference_images(32)}, None)
    for jump_s in (-365 * DAY_S, 20 * DAY_S):
        clock.now_s += jump_s
        asked.save(tmp_path / ASKED_FILE)
        assert still_fits(changed(shape=(1, PIXELS)), asked.of("digits"))


def test_another_form_of_inputs_begins_anew(loaded: LoadedModel) -> None:
    asked = AskedInputs()
    asked.note(loaded, {INPUT: reference_images(32)}, None)
    other = load(loaded.package)
    other.signature = changed(datatype=Datatype.FP64)
    asked.note(other, {INPUT: reference_images(2).astype(np.float64)}, None)
    found = asked.of("digits")
    assert found is not None
    assert found.takes == {INPUT: Datatype.FP64}
    assert found.now.axes[INPUT][0] == (2, 2)
    other.close()


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=8))
def test_exactly_what_was_sent_fits(shapes: list[tuple[int, int]]) -> None:
    window = Window()
    rows, columns = ([shape[axis] for shape in shapes] for axis in (0, 1))
    window.axes["x"] = ((min(rows), max(rows)), (min(columns), max(columns)))
    asked = Asked(takes={"x": Datatype.FP32}, gives={"y": Datatype.FP32}, now=window)
    spec = TensorSpec(name="x", datatype=Datatype.FP32, shape=(None, None))
    output = TensorSpec(name="y", datatype=Datatype.FP32, shape=(None, 2))
    assert still_fits(Signature(inputs=(spec,), outputs=(output,)), asked) == []
    for axis, lengths in ((0, rows), (1, columns)):
        shape: list[int | None] = [None, None]
        shape[axis] = lengths[0]
        fixed = msgspec.structs.replace(spec, shape=tuple(shape))
        assert bool(still_fits(Signature(inputs=(fixed,), outputs=(output,)), asked)) == (len(set(lengths)) > 1)
