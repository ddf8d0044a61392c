"""The console in a real browser: what is asserted is what a person would see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edge_agent.contract.messages import EventKind
from fleet_server.access.roles import Role
from tests.e2e.browser import Browser, browser
from tests.fakes.packages import make_package
from tests.fakes.update_server import update_server
from tests.fleet_server.console import past
from tests.fleet_server.console.harbour import MODEL, Harbour
from tests.fleet_server.console.serving import served

pytestmark = pytest.mark.real_parts("chromium", "chromedriver")

DRAWN = "return document.querySelector('#accuracy-chart.drawn canvas') !== null"
# Counts pixels that are neither empty nor of the grid: a chart without lines has next to none.
INK = """
const canvas = document.querySelector('#accuracy-chart canvas');
const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
let coloured = 0;
for (let at = 0; at < data.length; at += 4) {
  const [red, green, blue, alpha] = data.subarray(at, at + 4);
  if (alpha > 200 && Math.max(red, green, blue) - Math.min(red, green, blue) > 60) coloured++;
}
return coloured;
"""


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], Path]) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    with browser(program("chromedriver"), program("chromium"), folder / "profile") as opened:
        yield opened


@pytest.fixture
def view(window: Browser) -> Browser:
    """A window as most viewers have it, with nothing complained of yet."""
    window.open("about:blank")
    window.look(width=1280, height=900)
    window.in_zone("UTC")
    window.console()
    return window


@pytest.fixture
def harbour(tmp_path: Path) -> Iterator[Harbour]:
    made = Harbour(tmp_path)
    yield made
    made.db.close()


def log_in(view: Browser, harbour: Harbour, address: str) -> None:
    view.open(f"{address}/login?token={harbour.access.create_login(Role.VIEWER)}")
    view.wait("return document.getElementById('live') !== null && typeof shoalChart === 'object'")


def test_a_login_link_opens_the_console_and_the_chart_is_drawn_without_a_complaint(
    view: Browser, harbour: Harbour
) -> None:
    past.write(harbour)
    with served(harbour) as address:
        log_in(view, harbour, address)
        view.wait(DRAWN)
        assert view.wait(INK) > 1_000
        assert view.run("return document.querySelectorAll('#accuracy-legend button').length") == 5
        legend = view.run(
            "return [...document.querySelectorAll('#accuracy-legend .value')].map((one) => one.textContent)"
        )
        assert all("±" in text for text in legend[:4])
        assert legend[4].startswith("est. ")  # camera-4 went offline: its labels are not of the present
        assert view.run("return document.querySelectorAll('#fleet tbody tr').length") == 5
        assert view.run("return document.querySelector('#n-online').textContent") == "3 of 5"
        assert view.run("return document.cookie") == ""  # out of reach for scripts
        assert view.console() == []


def test_the_page_follows_the_fleet_without_a_jump_or_a_lost_focus(view: Browser, harbour: Harbour) -> None:
    past.write(harbour)
    with served(harbour) as address:
        log_in(view, harbour, address)
        view.wait(DRAWN)
        view.run("document.querySelector('#accuracy-legend button').focus(); window.untouched = true")
        before = view.run("return document.getElementById('drift').getBoundingClientRect().top")
        harbour.clock.at_ms += 2_000
        harbour.event("camera-2", EventKind.OUTBOX_DROPPED, reason="disk full: 12 samples dropped")
        harbour.rollouts.halt("r-2", "camera-3 broke its self-test")
        view.wait("return document.getElementById('events').textContent.includes('12 samples dropped')")
        view.wait("return document.getElementById('rollouts').textContent.includes('broke its self-test')")
        assert view.run("return window.untouched") is True  # the same document: nothing was loaded again
        assert view.run("return document.activeElement.dataset.subject") == "fleet"
        assert view.run("return document.getElementById('drift').getBoundingClientRect().top") == before
        assert view.run(DRAWN) is True
        assert view.console() == []


def test_no_event_is_shown_twice_and_a_refresh_keeps_their_order(view: Browser, harbour: Harbour) -> None:
    """Events of one moment, and of two devices in turn, come while the page is open."""
    past.write(harbour)
    shown = "return [...document.querySelectorAll('#events li')].map((one) => one.id)"
    with served(harbour) as address:
        log_in(view, harbour, address)
        for _ in range(3):
            harbour.clock.at_ms += 2_000
            for camera in ("camera-1", "camera-2", "camera-1"):
                harbour.event(camera, EventKind.AGENT_STARTED)
                harbour.event(camera, EventKind.UPDATE_STEP, package="00", step="resolved")
            newest = f"event-d{harbour.devices.events(limit=1)[0].id}"
            view.wait(f"return document.querySelector('#events li').id === '{newest}'")
            expected = [f"event-{one.key}" for one in harbour.console.read().events]
            assert view.run(shown) == expected
            assert len(set(expected)) == len(expected)


def test_ticks_closer_than_a_minute_show_seconds(view: Browser, harbour: Harbour) -> None:
    past.write(harbour)
    format_ticks = "return shoalChart.ticks([0, 30, 60], {})"
    with served(harbour) as address:
        log_in(view, harbour, address)
        assert view.run(format_ticks.format(30)) == ["00:00:00", "00:00:30", "00:01:00"]
        assert view.run(format_ticks.format(60)) == ["00:00", "00:00", "00:01"]


def test_an_empty_fleet_teaches_and_draws_its_first_line_when_it_comes(view: Browser, harbour: Harbour) -> None:
    with served(harbour) as address:
        log_in(view, harbour, address)
        assert f"--server {address} " in view.run("return document.getElementById('fleet').textContent")
        assert view.run("return document.getElementById('accuracy-empty').checkVisibility()") is True
        past.write(harbour)
        harbour.clock.at_ms += 2_000
        view.wait(DRAWN)
        assert view.run("return document.getElementById('accuracy-empty').checkVisibility()") is False
        assert view.console() == []


def test_a_line_that_is_switched_off_stays_off_when_the_page_refreshes(view: Browser, harbour: Harbour) -> None:
    past.write(harbour)
    pressed = "return document.querySelector('#accuracy-legend [data-subject=camera-3]').getAttribute('aria-pressed')"
    with served(harbour) as address:
        log_in(view, harbour, address)
        view.wait(DRAWN)
        view.run("document.querySelector('#accuracy-legend [data-subject=camera-3]').click()")
        assert view.run(pressed) == "false"
        time = view.run("return document.getElementById('n-time').textContent")
        harbour.clock.at_ms += 2_000
        view.wait(f"return document.getElementById('n-time').textContent !== {time!r}")
        assert view.run(pressed) == "false"


def test_times_are_in_the_zone_of_the_viewer_and_utc_in_the_title(view: Browser, harbour: Harbour) -> None:
    clock = "return document.querySelector('#n-time time').textContent"
    with served(harbour) as address:
        view.in_zone("Asia/Kolkata")
        log_in(view, harbour, address)
        title = view.run("return document.querySelector('#n-time time').title")
        hours, minutes = (int(part) for part in title.split()[1].split(":")[:2])
        assert title.endswith(" UTC")
        minutes = hours * 60 + minutes + 330
        local = f"{minutes // 60 % 24:02}:{minutes % 60:02}:"
        assert local in view.wait(f"return ({{ text: {clock.removeprefix('return ')} }}).text")


def test_a_server_that_is_gone_is_announced_and_its_return_too(view: Browser, harbour: Harbour) -> None:
    said = "return document.getElementById('connection').textContent"
    with served(harbour) as address:
        log_in(view, harbour, address)
    assert "does not answer" in view.wait(said)
    assert view.run("return document.getElementById('numbers') !== null") is True  # what was known stays in sight
    with served(harbour, port=int(address.rpartition(":")[2])):
        view.wait(f"return ({{ text: {said.removeprefix('return ')} }}).text === ''")


def test_a_pause_holds_the_page_still(view: Browser, harbour: Harbour) -> None:
    with served(harbour) as address:
        log_in(view, harbour, address)
        view.run("document.getElementById('pause').click()")
        assert view.run("return document.getElementById('connection').textContent") == "Paused"
        harbour.clock.at_ms += 2_000
        harbour.enrol("camera-9")
        # Twice the time between two refreshes: the only way to see that nothing comes.
        view.run("window.later = false; setTimeout(() => { window.later = true; }, 4000)")
        view.wait("return window.later")
        assert "camera-9" not in view.run("return document.getElementById('fleet').textContent")
        view.run("document.getElementById('pause').click()")
        view.wait("return document.getElementById('fleet').textContent.includes('camera-9')")


def test_a_session_that_has_ended_leads_to_the_login(view: Browser, harbour: Harbour) -> None:
    with served(harbour) as address:
        log_in(view, harbour, address)
        view.run("document.querySelector('form[action=\"/logout\"] button').click()")
        view.wait("return location.pathname === '/login'")


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1280, True)])
def test_narrow_and_dark_screens_show_the_whole_page(view: Browser, harbour: Harbour, width: int, dark: bool) -> None:
    past.write(harbour)
    with served(harbour) as address:
        view.look(width=width, height=900, dark=dark)
        log_in(view, harbour, address)
        view.wait(DRAWN)
        assert view.run("return document.documentElement.scrollWidth") == width
        lightness = view.run(
            "return Number(getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/)[0])"
        )
        assert (lightness < 60) is dark
        assert view.run("return document.querySelector('#accuracy-chart canvas').getBoundingClientRect().width") > 250
        assert view.console() == []


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1280, True)])
def test_the_page_of_one_device_follows_an_engine_that_is_being_built(
    view: Browser, harbour: Harbour, width: int, dark: bool
) -> None:
    past.write(harbour)
    with served(harbour) as address:
        view.look(width=width, height=900, dark=dark)
        log_in(view, harbour, address)
        view.run("document.querySelector('#fleet a[href=\"/devices/camera-2\"]').click()")
        view.wait("return location.pathname === '/devices/camera-2' && document.getElementById('gpus') !== null")
        assert view.run("return document.querySelector('#building-digits').value") == 42
        assert view.run("return document.documentElement.scrollWidth") == width
        harbour.clock.at_ms += 2_000
        runtime = msgspec.structs.replace(past.BUILDING, building_percent=77.0)
        model = msgspec.structs.replace(harbour.devices.get("camera-2").reported[MODEL], runtime=runtime)
        harbour.report("camera-2", model)
        view.wait("return document.querySelector('#building-digits').value === 77")
        assert view.console() == []


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1280, True)])
def test_a_release_comes_and_goes_on_the_page_while_it_waits_for_approval(
    view: Browser, harbour: Harbour, tmp_path: Path, width: int, dark: bool
) -> None:
    past.write(harbour)
    shown = "return document.getElementById('approvals')"
    (tmp_path / "updates").mkdir()
    with update_server(tmp_path / "updates", models=("faces",)) as updates, served(harbour) as address:
        updates.signing.add_model(MODEL, approvers={"ben": None, "dora": None})
        harbour.waiting = updates.approvals.list
        view.look(width=width, height=900, dark=dark)
        log_in(view, harbour, address)
        assert view.run(shown) is None
        updates.publisher.publish(make_package(tmp_path / "built", version="3", seed=3))
        harbour.clock.at_ms += 6_000
        command = f"shoal models approve digits 3 --key dora/approver.pem --server {address}"
        view.wait(f"return document.querySelector('#approvals pre')?.textContent.includes({command!r})")
        assert view.run("return document.documentElement.scrollWidth") == width
        updates.approvals.reject(MODEL, "3", "worse on sevens")
        harbour.clock.at_ms += 6_000
        view.wait(f"{shown} === null")
        assert view.console() == []
