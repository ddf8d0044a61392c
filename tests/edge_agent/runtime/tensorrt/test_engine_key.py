from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edge_agent.runtime.gpu.device_memory import Gpu
from edge_agent.runtime.gpu.survey import TensorRtLibrary
from edge_agent.runtime.tensorrt.engine_key import EngineConditions, conditions_here, engine_key, family_key
from edge_agent.runtime.tensorrt.profiles import ShapeProfile

ORIN = Gpu(0, "Orin", (8, 7), integrated=True, memory_bytes=8 << 30, driver_version=(12, 6))
LIBRARY = TensorRtLibrary(module="tensorrt", flavour="tensorrt", version=(10, 3, 0))
PROFILES = ((ShapeProfile("x", (1, 4), (2, 4), (8, 4)),),)


@pytest.fixture
def here(tmp_path: Path) -> EngineConditions:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    return conditions_here(ORIN, LIBRARY, l4t_file=release)


def test_the_conditions_are_those_of_board_system_and_library(here: EngineConditions) -> None:
    assert (here.gpu, here.compute_capability, here.l4t) == ("Orin", (8, 7), "36.4.3")
    assert (here.flavour, here.version) == ("tensorrt", (10, 3, 0))


def test_elsewhere_than_on_a_jetson_there_is_no_l4t(tmp_path: Path) -> None:
    assert conditions_here(ORIN, LIBRARY, l4t_file=tmp_path / "none").l4t == ""


@pytest.mark.parametrize(
    "change",
    [
        {"version": (10, 3, 1)},
        {"flavour": "tensorrt-rtx"},
        {"gpu": "Orin Nano"},
        {"compute_capability": (11, 0)},
        {"l4t": "36.4.4"},
        {"architecture": "riscv64"},
        {"system": "QNX"},
    ],
)
def test_another_engine_is_needed_wherever_anything_else_is_different(
    change: dict[str, object], here: EngineConditions
) -> None:
    there = dataclasses.replace(here, **change)  # type: ignore[arg-type]

    assert engine_key(here, model=["a"], profiles=PROFILES, precision="as-is") != engine_key(
        there, model=["a"], profiles=PROFILES, precision="as-is"
    )
    assert family_key(here, graph="g", profiles=PROFILES, precision="as-is") != family_key(
        there, graph="g", profiles=PROFILES, precision="as-is"
    )
    assert here.digest() != there.digest()


def test_model_shapes_precision_and_flags_are_in_the_key(here: EngineConditions) -> None:
    wider = ((ShapeProfile("x", (1, 4), (2, 4), (16, 4)),),)
    keys = {
        engine_key(here, model=["a"], profiles=PROFILES, precision="as-is"),
        engine_key(here, model=["b"], profiles=PROFILES, precision="as-is"),
        engine_key(here, model=["a", "b"], profiles=PROFILES, precision="as-is"),
        engine_key(here, model=["a"], profiles=wider, precision="as-is"),
        engine_key(here, model=["a"], profiles=PROFILES, precision="fp16"),
        engine_key(here, model=["a"], profiles=PROFILES, precision="as-is", flags=["level=5"]),
    }

    assert len(keys) == 6
    assert all(len(key) == 64 for key in keys)


def test_models_of_one_graph_share_a_family_and_no_key(here: EngineConditions) -> None:
    one, other = (engine_key(here, model=[sha256], profiles=PROFILES, precision="fp16") for sha256 in "ab")
    family = family_key(here, graph="g", profiles=PROFILES, precision="fp16")

    assert one != other
    assert family not in {one, other}


def test_a_graph_that_is_not_known_has_no_family(here: EngineConditions) -> None:
    assert family_key(here, graph="", profiles=PROFILES, precision="as-is") == ""
