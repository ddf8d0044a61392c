"""Which models swap together."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.manifest import Manifest, PipelineStep
from edge_agent.update.groups import Versions, plan
from tests.edge_agent.update.conftest import Prepared


@pytest.fixture(scope="module")
def model(prepared: Prepared) -> Any:
    def make(name: str, version: str, *steps: tuple[str, str | None]) -> Manifest:
        manifest = prepared.first.manifest
        pipeline = tuple(PipelineStep(model=step, version=pin) for step, pin in steps)
        variants = {} if steps else manifest.variants
        return msgspec.structs.replace(manifest, name=name, version=version, pipeline=pipeline, variants=variants)

    return make


def changing(*manifests: Manifest) -> dict[str, Manifest]:
    return {manifest.name: manifest for manifest in manifests}


def test_models_that_have_nothing_to_do_with_each_other_come_alone(model: Any) -> None:
    found = plan(changing(model("digits", "2"), model("faces", "2")), {}, {})
    assert found.groups == (("digits",), ("faces",))


def test_a_pipeline_comes_with_its_steps_and_they_with_each_other(model: Any) -> None:
    reader = model("reader", "2", ("scaler", "2"), ("digits", "2"))
    found = plan(changing(reader, model("digits", "2"), model("scaler", "2"), model("faces", "9")), {}, {})
    assert found.groups == (("digits", "reader", "scaler"), ("faces",))
    installed = {"reader": model("reader", "1", ("scaler", None), ("digits", None))}
    found = plan(changing(model("digits", "2"), model("scaler", "2")), installed, {})
    assert found.groups == (("digits", "scaler"),), "a request must not meet one old and one new"


def test_a_step_of_two_pipelines_joins_them(model: Any) -> None:
    both = changing(
        model("reader", "2", ("digits", None)), model("sorter", "2", ("digits", None)), model("digits", "2")
    )
    assert plan(both, {}, {}).groups == (("digits", "reader", "sorter"),)


def test_a_pinned_pipeline_waits_for_its_step_and_says_which(model: Any) -> None:
    reader = model("reader", "2", ("scaler", "2"), ("digits", "1"))
    found = plan(changing(reader), {}, {"scaler": Versions("1"), "digits": Versions("1")})
    assert found.groups == ()
    assert found.waiting == {"reader": "waits for its step 'scaler' 2; here there is: 1"}


def test_a_step_that_an_installed_pipeline_is_pinned_to_waits_for_a_new_pipeline(model: Any) -> None:
    installed = {"reader": model("reader", "1", ("digits", "1"))}
    found = plan(changing(model("digits", "2")), installed, {})
    assert "pipeline 'reader' 1, installed here, is pinned to 'digits' 1" in found.waiting["digits"]
    beside = plan(changing(model("digits", "2")), installed, {"digits": Versions("", frozenset({"1"}))})
    assert beside.groups == (("digits",),), "version 1 lies in the folder of models too, and stays"


def test_where_the_pipeline_has_to_wait_its_steps_do_too_as_the_old_one_needs_the_old_ones(model: Any) -> None:
    installed = {"reader": model("reader", "1", ("digits", "1"), ("scaler", "1"))}
    reader = model("reader", "2", ("digits", "2"), ("scaler", "2"))
    found = plan(changing(reader, model("digits", "2")), installed, {"scaler": Versions("1"), "digits": Versions("1")})
    assert (found.groups, set(found.waiting)) == ((), {"reader", "digits"})


names = st.sampled_from(["a", "b", "c", "d"])
pins = st.none() | st.sampled_from(["1", "2"])


@given(data=st.data())
def test_every_pipeline_that_goes_has_its_pins_and_every_model_is_in_one_group(data: st.DataObject, model: Any) -> None:
    def some(version: str) -> dict[str, Manifest]:
        found = {}
        for name in data.draw(st.sets(names)):
            others = st.sampled_from(sorted(set("abcd") - {name}))
            steps = data.draw(st.lists(st.tuples(others, pins), max_size=2))
            found[name] = model(name, version, *steps)
        return found

    going, installed = some("2"), {name: one for name, one in some("1").items() if one.pipeline}
    found = plan(going, installed, {name: Versions("1") for name in "abcd"})
    members = [name for group in found.groups for name in group]
    assert sorted([*members, *found.waiting]) == sorted(going)
    after = installed | {name: going[name] for name in members}
    for name, manifest in after.items():
        for step in manifest.pipeline:
            fits = step.version in (None, "2" if step.model in members else "1")
            assert fits or (name not in members and step.model not in members), "what did not fit before may stay so"


def test_a_step_that_has_to_wait_is_here_in_its_old_version(model: Any) -> None:
    installed = {"sorter": model("sorter", "1", ("digits", "1"))}
    reader = model("reader", "2", ("digits", "1"))
    found = plan(changing(reader, model("digits", "2")), installed, {"digits": Versions("1")})
    assert (found.groups, set(found.waiting)) == ((("reader",),), {"digits"})
