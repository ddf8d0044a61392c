"""The board: windows of mean load, energy and throttling, from a thread that nothing can hurt."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.contract.errors import AcceleratorUnavailable
from edge_agent.contract.messages import DeviceMetrics, GpuMetrics
from edge_agent.monitor.board.board import Board, Source, find_board
from edge_agent.monitor.board.energy import Energy
from edge_agent.monitor.board.system_files import SystemFiles
from edge_agent.monitor.board.versions import accelerator
from tests.edge_agent.monitor.conftest import MakeBoard


class Still:
    """A board whose readings a test sets."""

    def __init__(self) -> None:
        self.reading = DeviceMetrics(power_w=10.0)
        self.error: Exception | None = None
        self.closed = threading.Event()

    def sample(self) -> DeviceMetrics:
        if self.error is not None:
            raise self.error
        return self.reading

    def close(self) -> None:
        self.closed.set()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def unopened() -> Board:
    return Board(Still, clock=lambda: 100.0)


def loaded(busy: float | None, *, watts: float | None = None, throttled: tuple[str, ...] = ()) -> DeviceMetrics:
    return DeviceMetrics(gpus=(GpuMetrics(name="Orin", busy_percent=busy, throttled=throttled),), power_w=watts)


def test_energy_is_the_area_under_the_power() -> None:
    energy = Energy()
    assert energy.take(0.0) is None
    for at_s, watts in ((0.0, 10.0), (2.0, 20.0), (3.0, 20.0)):
        energy.add(at_s, watts)
    assert energy.take(3.5) == pytest.approx(30.0 + 20.0)
    energy.add(4.0, 0.0)  # the trapezoid from the last reading of the window before
    assert energy.take(4.5) == pytest.approx(10.0)
    assert energy.take(5.0) is None
    assert energy.total_j == pytest.approx(60.0)


def test_energy_over_a_gap_is_unknown() -> None:
    energy = Energy(longest_gap_s=5.0)
    for at_s in (0.0, 1.0, 60.0, 61.0):
        energy.add(at_s, 10.0)
    assert energy.take(61.0) is None
    energy.add(62.0, 10.0)
    assert energy.take(62.0) == pytest.approx(10.0)
    assert energy.total_j == pytest.approx(30.0)


def test_energy_is_unknown_in_every_window_that_a_gap_touches() -> None:
    energy = Energy(longest_gap_s=5.0)
    for at_s in (0.0, 1.0, 2.0):
        energy.add(at_s, 10.0)
    assert energy.take(60.0) is None, "of the first two seconds alone it would be too small"
    assert energy.take(120.0) is None
    for at_s in (130.0, 131.0):
        energy.add(at_s, 10.0)
    assert energy.take(180.0) is None
    for at_s in (190.0, 191.0):
        energy.add(at_s, 10.0)
    assert energy.take(191.5) is None
    energy.add(192.0, 10.0)
    assert energy.take(192.0) == pytest.approx(10.0)


def test_a_window_has_the_mean_load_and_every_reason() -> None:
    board = unopened()
    board.keep(98.0, loaded(20.0, watts=10.0, throttled=("SW power cap",)))
    board.keep(99.0, loaded(None, watts=10.0))
    board.keep(100.0, loaded(70.0, watts=20.0, throttled=("HW slowdown",)))
    taken = board.take()
    assert taken.gpus[0].busy_percent == 45.0
    assert taken.gpus[0].throttled == ("SW power cap", "HW slowdown")
    assert taken.power_w == 20.0
    assert taken.energy_j == pytest.approx(25.0)
    again = board.take()
    assert (again.gpus[0].busy_percent, again.energy_j) == (70.0, None)
    assert again.gpus[0].throttled == ("HW slowdown",)


def test_reasons_of_the_board_last_for_a_window() -> None:
    board = unopened()
    board.keep(99.0, DeviceMetrics(throttled=("over-current",)))
    board.keep(100.0, DeviceMetrics())
    assert board.latest().throttled == ()
    assert board.take().throttled == ("over-current",)
    assert board.take().throttled == ()


def test_an_old_sample_is_no_state_of_now() -> None:
    board = unopened()
    board.keep(80.0, loaded(50.0, watts=5.0))
    board.keep(81.0, loaded(50.0, watts=5.0))
    assert board.latest() == DeviceMetrics()
    assert board.take() == DeviceMetrics()


def test_a_thread_samples_until_it_is_closed() -> None:
    source = Still()
    board = Board(lambda: source, interval_s=0.01)
    board.start()
    wait_for(lambda: board.energy_j > 0)
    board.close()
    assert source.closed.is_set()
    assert board.latest().power_w == 10.0


def test_a_source_that_fails_is_told_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    source = Still()
    source.error = ValueError("a board like no other")
    board = Board(lambda: source, interval_s=0.001)
    board.start()
    wait_for(lambda: bool(caplog.records))
    time.sleep(0.05)
    source.error = None
    wait_for(lambda: board.latest().power_w == 10.0)
    board.close()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("error", "level"), [(AcceleratorUnavailable("no library"), logging.INFO), (ValueError("odd"), logging.ERROR)]
)
def test_a_source_that_cannot_be_opened_leaves_everything_unknown(
    error: Exception, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> Source:
        raise error

    caplog.set_level(logging.INFO)
    board = Board(refuse)
    board.start()
    wait_for(lambda: bool(caplog.records))
    assert board.take() == DeviceMetrics()
    board.close()
    assert [record.levelno for record in caplog.records] == [level]


def test_a_machine_without_a_board_has_nothing_to_read(tmp_path: Path) -> None:
    assert find_board(tmp_path) is None


@pytest.mark.parametrize("name", ["nano", "orin-nano", "agx-orin", "thor"])
def test_a_jetson_is_found_and_read(make_board: MakeBoard, tmp_path: Path, name: str) -> None:
    board = find_board(make_board(name), nvml_library="libnone.so", search_path=str(tmp_path), interval_s=0.01)
    assert board is not None
    board.start()
    wait_for(lambda: board.energy_j > 0)
    taken = board.take()
    board.close()
    assert (taken.power_w or 0) > 1
    assert (taken.energy_j or 0) > 0
    assert len(taken.gpus) == 1


@pytest.mark.parametrize("name", ["orin-nano", "thor"])
def test_a_jetson_in_a_container_is_known_by_its_chip(make_board: MakeBoard, name: str) -> None:
    root = make_board(name)
    (root / "proc/device-tree/compatible").unlink()  # container runtimes hide the device tree
    (root / "etc/nv_tegra_release").unlink()
    assert find_board(root) is not None


def test_the_gpu_of_another_makers_chip_is_no_jetsons(tmp_path: Path) -> None:
    mali = tmp_path / "sys/class/devfreq/fb000000.gpu"  # Rockchip RK3588
    mali.mkdir(parents=True)
    (mali / "cur_freq").write_text("300000000\n")
    tree = tmp_path / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "compatible").write_text("radxa,rock-5b\0rockchip,rk3588\0")
    assert find_board(tmp_path) is None
    assert accelerator(SystemFiles(tmp_path)) == "cpu"


def test_a_discrete_gpu_is_read_through_nvml(tmp_path: Path, stub_nvml: str) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    board = find_board(tmp_path, nvml_library=stub_nvml, interval_s=0.01)
    assert board is not None
    board.start()
    wait_for(lambda: bool(board.latest().gpus))
    taken = board.take()
    board.close()
    assert taken.gpus[0].power_w == 215.5
    assert (taken.power_w, taken.energy_j) == (None, None)  # of the GPU, not of the machine
