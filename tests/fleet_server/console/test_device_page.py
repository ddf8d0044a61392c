"""One device's page, and what the fleet table says of boards and runtimes."""

from __future__ import annotations

import re
from html import unescape

import pytest

from edge_agent.contract.messages import ReportedModel, ReportedRuntime, Status, UpdateStep
from tests.fleet_server.console.harbour import Harbour
from tests.fleet_server.console.test_page import HOSTILE, Tags, page, row


def words(text: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", text)).split()).replace("\xa0", " ")


def part(text: str, name: str) -> str:
    """The words of one section."""
    found = re.search(rf'<(section|dl)[^>]* id="{name}"[^>]*>(.*?)</\1>', text, re.DOTALL)
    assert found is not None, name
    return words(found[2])


async def test_a_board_at_ease_shows_its_power_energy_and_temperature(harbour: Harbour) -> None:
    text = await page(harbour, "/devices/camera-1")
    numbers = part(text, "numbers")
    assert "Throttled no" in numbers
    assert "Power of the board 9.8 W mode 15W" in numbers
    assert "Energy per inference 408 mJ" in numbers
    assert 'title="what the whole board took in 10 min, divided by its 720 inferences"' in text
    assert "Orin (nvgpu) 62 % 5.0 GiB of 8.0 GiB 54 °C" in part(text, "gpus")
    assert "625 of 625 MHz no" in part(text, "gpus")


async def test_a_throttled_board_says_why_and_how_often(harbour: Harbour) -> None:
    text = await page(harbour, "/devices/camera-2")
    assert "throttled by temperature; in 100% of the last 10 min's reports" in part(text, "numbers")
    assert "421 of 625 MHz throttled temperature" in part(text, "gpus")
    assert row(await page(harbour), "camera-2").startswith("camera-2 online throttled")


async def test_a_model_says_what_it_runs_on_and_why(harbour: Harbour) -> None:
    models = part(await page(harbour, "/devices/camera-1"), "models")
    assert "runs on tensorrt fp16 tensorrt fp16: 0.9 ms for one row against 6.1 ms on onnxruntime-cpu" in models
    assert "4,210 requests since the swap" in models


async def test_an_engine_being_built_shows_how_far_it_is(harbour: Harbour) -> None:
    text = await page(harbour, "/devices/camera-2")
    assert "runs on onnxruntime-cpu fp32 serves until the engine is ready" in part(text, "models")
    assert "building a TensorRT engine (tactics) 42 %" in part(text, "models")
    assert '<progress id="building-digits" max="100" value="42.0">' in text
    assert "onnxruntime-cpu fp32 building 42 %" in row(await page(harbour), "camera-2")


async def test_progress_that_nobody_knows_is_shown_without_a_number(harbour: Harbour) -> None:
    runtime = ReportedRuntime(name="onnxruntime-cpu", building="measuring")
    harbour.report("camera-1", ReportedModel(version="1", package="00", step=UpdateStep.COMMITTED, runtime=runtime))
    text = await page(harbour, "/devices/camera-1")
    assert '<progress id="building-digits" max="100">' in text
    assert "measuring" in part(text, "models")
    assert "%" not in part(text, "models")


async def test_a_device_that_tells_nothing_of_its_board_shows_dashes(harbour: Harbour) -> None:
    text = await page(harbour, "/devices/camera-3")
    assert "Throttled not told" in part(text, "numbers")
    assert "It tells of no GPU." in part(text, "gpus")
    assert "its agent does not tell what it runs on" in part(text, "models")
    assert "CPU busy 34 %" in part(text, "machine")


async def test_figures_of_a_device_that_is_away_are_called_old(harbour: Harbour) -> None:
    text = await page(harbour, "/devices/camera-4")
    assert "It is away: power, load and temperatures are those of its last report" in words(text)
    assert "11.0 W" not in row(await page(harbour), "camera-4")
    assert "It is away" not in words(await page(harbour, "/devices/camera-1"))


async def test_a_device_that_has_never_connected_has_a_page(harbour: Harbour) -> None:
    text = await page(harbour, "/devices/camera-5")
    assert "No model yet" in part(text, "models")
    assert "shoal rollouts create MODEL VERSION" in text


async def test_only_its_own_events_are_shown(harbour: Harbour) -> None:
    where = re.findall(r'<span class="where">([^<]+)</span>', await page(harbour, "/devices/camera-2"))
    assert set(where) == {"camera-2"}


async def test_the_fleet_leads_to_each_devices_page(harbour: Harbour) -> None:
    assert '<a href="/devices/camera-2">camera-2</a>' in await page(harbour)
    assert '<a href="/">harbour</a>' in await page(harbour, "/devices/camera-2")


async def test_a_shadow_is_neither_good_nor_bad_and_shows_its_figures(empty: Harbour) -> None:
    empty.enrol("camera-1")
    reason = "12 of 12 rows agree (100.0%)"
    shadowing = ReportedModel(version="1", package="00", step=UpdateStep.SHADOW, target="11", reason=reason)
    empty.report("camera-1", shadowing)
    text = await page(empty, "/devices/camera-1")
    assert "digits 1 00 shadow 11" in part(text, "models")
    assert f'<p class="note">{reason}</p>' in text


async def test_an_update_that_waits_for_the_device_s_window_says_so(empty: Harbour) -> None:
    empty.enrol("camera-1")
    reason = "waits for the window 22:00-05:00"
    empty.report(
        "camera-1",
        ReportedModel(version="1", package="00", step=UpdateStep.COMMITTED, reason=reason, waits_until_ms=10**12),
    )
    models = part(await page(empty, "/devices/camera-1"), "models")
    assert "committed, next waits" in models
    assert reason in models


async def test_a_fleet_without_boards_has_no_columns_for_them(empty: Harbour) -> None:
    empty.enrol("camera-1")
    empty.devices.on_status("camera-1", Status(online=True, at_ms=1))
    empty.report("camera-1", ReportedModel(version="1", package="00", step=UpdateStep.COMMITTED))
    text = await page(empty)
    assert "Runs on" not in text
    assert "Energy each" not in text


async def test_its_live_part_is_the_inside_of_its_page(harbour: Harbour) -> None:
    whole = await page(harbour, "/devices/camera-1")
    live = await page(harbour, "/console/devices/camera-1")
    assert live.strip() in whole
    assert 'hx-get="/console/devices/camera-1"' in whole
    ids = [attributes["id"] for _, attributes in Tags(whole).found if "id" in attributes]
    assert len(ids) == len(set(ids))


async def test_hostile_reasons_are_shown_and_never_obeyed(harbour: Harbour) -> None:
    runtime = ReportedRuntime(name=HOSTILE, precision="fp16", reason=HOSTILE, building=HOSTILE)
    harbour.report("camera-1", ReportedModel(version="1", package="00", step=UpdateStep.COMMITTED, runtime=runtime))
    for path in ("/", "/devices/camera-1"):
        text = await page(harbour, path)
        assert HOSTILE in unescape(text)
        assert not any(tag == "img" and one.get("src") == "x" for tag, one in Tags(text).found)


@pytest.mark.parametrize(("path", "status"), [("/devices/camera-1", 303), ("/console/devices/camera-1", 401)])
async def test_strangers_do_not_see_a_device(harbour: Harbour, path: str, status: int) -> None:
    async with harbour.client() as client:
        assert (await client.get(path)).status_code == status


async def test_a_device_that_is_not_there_is_not_found(harbour: Harbour) -> None:
    async with harbour.client(harbour.session()) as client:
        answer = await client.get("/devices/camera-99")
    assert answer.status_code == 404
    assert "no device 'camera-99'" in answer.json()["error"]
