"""A Jetson board from its files: power, load, clocks, temperature, power mode, throttling."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edge_agent.contract.errors import AcceleratorUnavailable
from edge_agent.contract.messages import DeviceMetrics
from edge_agent.monitor.board.jetson import Jetson
from edge_agent.monitor.board.nvml import Nvml
from edge_agent.monitor.board.power_mode import PowerMode, mode_names, printed_mode
from edge_agent.monitor.board.system_files import SystemFiles
from tests.edge_agent.monitor.conftest import MakeBoard


def no_nvml() -> Nvml:
    raise AcceleratorUnavailable("none here")


def sample(root: Path) -> DeviceMetrics:
    return Jetson(SystemFiles(root), open_nvml=no_nvml).sample()


def test_a_nano_tells_through_the_older_driver(make_board: MakeBoard) -> None:
    found = sample(make_board("nano"))
    gpu = found.gpus[0]
    assert (gpu.name, gpu.busy_percent, gpu.clock_mhz, gpu.max_clock_mhz) == ("Tegra X1", 43.7, 76.8, 921.6)
    assert (gpu.temperature_c, gpu.power_w) == (36.0, 0.0)
    assert gpu.memory_used_bytes == (4059136 - 3512320) * 1024
    assert (found.power_w, found.power_mode, found.throttled) == (1.022, "MAXN", ())
    assert found.temperature_c == 39.5  # PMIC-Die's 100 measures nothing


def test_an_orin_nano_tells_through_the_kernels_own_driver(make_board: MakeBoard) -> None:
    found = sample(make_board("orin-nano"))
    gpu = found.gpus[0]
    assert (gpu.name, gpu.busy_percent, gpu.clock_mhz, gpu.max_clock_mhz) == ("Orin", 63.0, 621.0, 1020.0)
    assert (gpu.temperature_c, gpu.power_w) == (53.343, None)  # its rail carries processors too
    assert found.power_w == pytest.approx(4.984 * 2.504)
    assert found.power_mode == "MAXN_SUPER"
    assert found.throttled == ()  # events of before the agent, a warm surface and a fan are no throttling


def test_an_agx_orin_takes_what_its_three_rails_take_together(make_board: MakeBoard) -> None:
    found = sample(make_board("agx-orin"))
    assert found.power_w == pytest.approx(19.504 * 0.120 + 19.504 * 0.020 + 5.032 * 0.800)
    assert found.gpus[0].temperature_c is None  # it is off, and says -256
    assert found.temperature_c == 44.562
    assert found.power_mode == "7"  # a number that no table names


def test_a_thor_takes_what_its_input_takes(make_board: MakeBoard) -> None:
    found = sample(make_board("thor"))
    gpu = found.gpus[0]
    assert (gpu.name, gpu.busy_percent, gpu.temperature_c) == ("Thor", None, None)
    assert (gpu.clock_mhz, gpu.max_clock_mhz) == (1574.0, 1575.0)  # not those of the video codec
    assert gpu.power_w == pytest.approx(19.784 * 0.180)
    assert (found.power_w, found.power_mode) == (26.686, "120W")


def test_a_thors_load_comes_from_nvml(make_board: MakeBoard, stub_nvml: str) -> None:
    jetson = Jetson(SystemFiles(make_board("thor")), open_nvml=lambda: Nvml(stub_nvml))
    gpu = jetson.sample().gpus[0]
    jetson.close()
    assert (gpu.name, gpu.busy_percent, gpu.temperature_c) == ("Thor", 42.0, 51.0)
    assert gpu.clock_mhz == 1574.0  # files stand above NVML


def test_an_orin_without_a_load_is_not_asked_through_nvml(make_board: MakeBoard, stub_nvml: str) -> None:
    root = make_board("orin-nano")
    (root / "sys/devices/platform/bus@0/17000000.gpu/load").unlink()
    jetson = Jetson(SystemFiles(root), open_nvml=lambda: Nvml(stub_nvml))
    assert jetson.sample().gpus[0].busy_percent is None


def test_tegrastats_tells_what_no_file_does(make_board: MakeBoard, tmp_path: Path) -> None:
    root = make_board("thor")
    for file in (root / "sys/class/hwmon").glob("*/name"):
        file.unlink()
    program = tmp_path / "tegrastats"
    line = "RAM 1/2MB GR3D_FREQ 87%@[1574,1574] gpu@56.9C VDD_GPU 37939mW/8660mW/37939mW VIN 124486mW/36487mW/124486mW"
    program.write_text(f"#!/bin/sh\nwhile echo '{line}'; do sleep 1; done\n")
    program.chmod(0o755)
    jetson = Jetson(SystemFiles(root), open_nvml=no_nvml, tegrastats=str(program))
    try:
        found = jetson.sample()
        while found.power_w is None:  # the test's own time limit ends it
            found = jetson.sample()
    finally:
        jetson.close()
    assert (found.power_w, found.gpus[0].busy_percent, found.gpus[0].power_w) == (124.486, 87.0, 37.939)


def test_tegrastats_ends_where_it_says_nothing_that_is_missing(make_board: MakeBoard, tmp_path: Path) -> None:
    root = make_board("nano")
    for file in (root / "sys/bus/i2c/drivers/ina3221x/6-0040").glob("*/*"):
        file.unlink()  # as a Nano 2GB, which has no power monitor
    program = tmp_path / "tegrastats"
    program.write_text("#!/bin/sh\nwhile echo 'RAM 1/2MB CPU@40C'; do sleep 1; done\n")
    program.chmod(0o755)
    jetson = Jetson(SystemFiles(root), open_nvml=no_nvml, tegrastats=str(program))
    while jetson._tegrastats is not None:  # the test's own time limit ends it
        found = jetson.sample()
    assert (found.power_w, found.gpus[0].busy_percent) == (None, 43.7)
    assert jetson.sample().power_w is None
    jetson.close()


def test_tegrastats_runs_no_longer_than_something_is_missing(make_board: MakeBoard, tmp_path: Path) -> None:
    root = make_board("orin-nano")
    load = root / "sys/devices/platform/bus@0/17000000.gpu/load"
    program, ended = tmp_path / "tegrastats", tmp_path / "ended"
    program.write_text(
        f"#!/bin/sh\ntrap 'echo x > {ended}; exit' TERM\nwhile echo 'RAM 1/2MB GR3D_FREQ 55%'; do sleep 0.1; done\n"
    )
    program.chmod(0o755)
    jetson = Jetson(SystemFiles(root), open_nvml=no_nvml, tegrastats=str(program))
    away = load.rename(load.with_name("away"))
    while jetson.sample().gpus[0].busy_percent != 55.0:  # the test's own time limit ends it
        pass
    away.rename(load)
    assert jetson.sample().gpus[0].busy_percent == 63.0
    assert ended.exists()
    jetson.close()


def test_throttling_is_what_happened_since_the_last_look(make_board: MakeBoard) -> None:
    root = make_board("orin-nano")
    jetson = Jetson(SystemFiles(root))
    jetson.sample()
    (root / "sys/class/hwmon/hwmon3/oc3_event_cnt").write_text("38\n")
    (root / "sys/class/hwmon/hwmon3/oc1_event_cnt").write_text("2\n")
    (root / "sys/class/thermal/cooling_device2/cur_state").write_text("4\n")
    assert jetson.sample().throttled == ("under-voltage", "over-current", "temperature (gpu)")
    assert jetson.sample().throttled == ("temperature (gpu)",)
    (root / "sys/class/thermal/cooling_device2/cur_state").write_text("0\n")
    assert jetson.sample().throttled == ()


def test_drivers_that_come_up_late_are_found(make_board: MakeBoard) -> None:
    root = make_board("orin-nano")
    later = root / "sys/class/devfreq-later"
    (root / "sys/class/devfreq").rename(later)
    jetson = Jetson(SystemFiles(root))
    assert jetson.sample().gpus[0].clock_mhz is None
    later.rename(root / "sys/class/devfreq")
    for _ in range(30):
        found = jetson.sample()
    assert found.gpus[0].clock_mhz == 621.0


def test_a_board_that_tells_nothing_is_all_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36\n")
    found = sample(tmp_path)
    assert (found.power_w, found.temperature_c, found.power_mode, found.throttled) == (None, None, "", ())
    assert found.gpus[0].busy_percent is None
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_broken_reading_is_unknown_and_told_once(make_board: MakeBoard, caplog: pytest.LogCaptureFixture) -> None:
    root = make_board("orin-nano")
    load = root / "sys/devices/platform/bus@0/17000000.gpu/load"
    load.write_text("garbage\n")
    temperature = root / "sys/class/thermal/thermal_zone0/temp"
    temperature.unlink()
    temperature.mkdir()
    jetson = Jetson(SystemFiles(root))
    found = [jetson.sample() for _ in range(5)]
    assert found[-1].gpus[0].busy_percent is None
    assert found[-1].temperature_c == 53.968  # of the junction
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert any(str(load) in line and "garbage" in line for line in told)


def test_a_load_beyond_its_range_is_unknown(make_board: MakeBoard) -> None:
    root = make_board("nano")
    (root / "sys/devices/gpu.0/load").write_text("4294967295\n")
    assert sample(root).gpus[0].busy_percent is None


def test_the_power_mode_is_asked_for_where_no_file_tells_it(tmp_path: Path) -> None:
    program = tmp_path / "nvpmodel"
    program.write_text('#!/bin/sh\n[ "$1" = -q ] && printf "NV Power Mode: MODE_15W_6CORE\\n2\\n"\n')
    program.chmod(0o755)
    assert PowerMode(SystemFiles(tmp_path), str(program)).read() == "MODE_15W_6CORE"
    assert PowerMode(SystemFiles(tmp_path), str(tmp_path / "none")).read() == ""
    assert PowerMode(SystemFiles(tmp_path)).read() == ""


def test_a_power_mode_that_changes_is_told(make_board: MakeBoard) -> None:
    root = make_board("orin-nano")
    mode = PowerMode(SystemFiles(root))
    assert mode.read() == "MAXN_SUPER"
    (root / "var/lib/nvpmodel/status").write_text("pmode:0003\n")
    assert mode.read() == "7W"


def test_names_of_power_modes() -> None:
    assert mode_names("#< POWER_MODEL ID=4 NAME=NO >\n< POWER_MODEL NAME=MAXN ID=3 >\n< PM_CONFIG DEFAULT=2 >") == {
        3: "MAXN"
    }
    assert printed_mode("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n") == "MAXN"
    assert printed_mode("") == ""
