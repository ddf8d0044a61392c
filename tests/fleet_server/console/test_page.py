from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
import sqlalchemy as sa

from edge_agent.contract.messages import EventKind, ReportedModel, UpdateStep
from fleet_server.access.guard import SESSION_COOKIE
from fleet_server.console.service import MOST_ROWS
from fleet_server.monitoring.tables import alerts
from fleet_server.rollouts import state, store
from fleet_server.rollouts.rollout import Gate, Rollout, State
from tests.fleet_server.console.harbour import MODEL, Harbour

SECTIONS = ("numbers", "fleet", "accuracy", "drift", "rollouts", "runs", "events")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"quotes\" 'single' {{ 7 * 7 }}"


class Tags(HTMLParser):
    """Every start tag of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


async def page(harbour: Harbour, path: str = "/") -> str:
    async with harbour.client(harbour.session()) as client:
        answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def row(text: str, device: str) -> str:
    """The words of a device's row in the fleet table."""
    found = re.search(rf'<tr id="device-{device}-[^"]*">(.*?)</tr>', text, re.DOTALL)
    assert found is not None
    return (
        " ".join(unescape(re.sub(r"<[^>]+>", " ", found[1])).split()).replace("\xa0", " ").replace("\N{EN DASH}", "-")
    )


def chart(text: str) -> dict[str, Any]:
    found = re.search(r'data-chart="([^"]*)"', text)
    assert found is not None
    data: dict[str, Any] = json.loads(unescape(found[1]))
    return data


async def test_the_page_has_all_its_sections(harbour: Harbour) -> None:
    text = await page(harbour)
    ids = [attributes.get("id") for _, attributes in Tags(text).found]
    assert [one for one in ids if one in SECTIONS] == list(SECTIONS)


async def test_no_identifier_is_used_twice(harbour: Harbour) -> None:
    ids = [attributes["id"] for _, attributes in Tags(await page(harbour)).found if "id" in attributes]
    assert len(ids) == len(set(ids))


async def test_the_fleet_table_says_what_each_device_serves_and_how_well(harbour: Harbour) -> None:
    text = await page(harbour)
    assert re.match(
        r"camera-1 online digits 2 [0-9a-f]{8} tensorrt fp16 committed 24\.0 0\.\d\d 9\.8 W 408 mJ steady "
        r"\d\d\.\d % ±\d+ ",
        row(text, "camera-1"),
    )
    assert "self-tested" in row(text, "camera-3")
    assert "drifted" in row(text, "camera-3")
    assert "offline" in row(text, "camera-4")
    assert row(text, "camera-5") == "camera-5 enrolled none yet - - - - - - not judged - - 0 never"


async def test_the_speed_of_a_device_that_is_offline_is_not_shown(harbour: Harbour) -> None:
    assert "24.0" not in row(await page(harbour), "camera-4")


async def test_the_header_counts_devices_alerts_and_what_is_under_way(harbour: Harbour) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", await page(harbour)).split())
    assert "3 devices online, 2 offline, 3 open alerts, rollout digits 2: wave 2 of 3, 2/4 devices" in text
    assert "training gauges: fit, 42%." in text


async def test_the_chart_has_lines_from_labels_and_estimates_and_marks_what_happened(harbour: Harbour) -> None:
    data = chart(await page(harbour))
    lines = {(one["subject"], one["estimated"]) for one in data["series"]}
    assert lines == {
        (name, estimated) for name in ("fleet", *(f"camera-{n}" for n in range(1, 5))) for estimated in (0, 1)
    }
    assert {mark["kind"] for mark in data["marks"]} == {"drift", "harm", "retraining", "rollout"}
    assert data["promised"] == 0.951
    assert all(len(one["values"]) == len(data["times"]) for one in data["series"])


async def test_a_span_that_is_chosen_is_kept_by_the_refresh(harbour: Harbour) -> None:
    text = await page(harbour, "/?span=15+min")
    data = chart(text)
    assert data["until"] - data["from"] == 900
    assert 'hx-get="/console/live?model=digits&amp;span=15+min"' in text


async def test_an_unknown_span_or_model_shows_what_there_is(harbour: Harbour) -> None:
    text = await page(harbour, "/?span=aeon&model=nothing")
    assert '<a href="/?model=digits" aria-current="true">digits</a>' in text
    assert chart(text)["series"]


async def test_another_model_can_be_chosen(harbour: Harbour) -> None:
    assert chart(await page(harbour, "/?model=gauges"))["series"] == []


async def test_the_drift_panel_marks_the_threshold_and_what_lies_beyond(harbour: Harbour) -> None:
    text = await page(harbour)
    panel = text[text.index('id="drift-camera-3-digits"') : text.index('id="drift-camera-4-digits"')]
    assert panel.count('class="flagged"') == 5
    assert 'title="threshold 0.25"' in panel
    assert 'x1="25.0%"' in panel


async def test_rollouts_show_each_wave_and_device(harbour: Harbour) -> None:
    text = await page(harbour)
    panel = re.sub(r"<[^>]+>", " ", text[text.index('id="rollout-r-2"') : text.index('id="rollout-r-1"')])
    words = " ".join(panel.split())
    assert (
        "1 device done 1/1 camera-1 committed 50% now 1/2 camera-2 committed camera-3 assigned whole fleet to come"
        in words
    )


async def test_a_halted_rollout_says_why(harbour: Harbour) -> None:
    harbour.rollouts.halt("r-2", "camera-3 broke its self-test")
    harbour.clock.at_ms += 2_000
    text = await page(harbour)
    assert '<p class="note bad">camera-3 broke its self-test</p>' in text
    assert "rollout halted" in text


async def test_runs_show_champion_against_challenger_and_the_reasons(harbour: Harbour) -> None:
    words = " ".join(unescape(re.sub(r"<[^>]+>", " ", await page(harbour))).split()).replace("\xa0", " ")
    # The reasons say the difference, with its interval: said twice, it would be rounded twice.
    assert "champion 66.1 % → challenger 94.0 % better: +27.9 points" in words
    assert "undecided: +1.3 points, interval -3.1 to +5.7" in words


async def test_events_come_newest_first(harbour: Harbour) -> None:
    text = await page(harbour)
    times = re.findall(r'<li id="event-[^>]*><time datetime="([^"]+)"', text)
    assert len(times) > 10
    assert times == sorted(times, reverse=True)


async def test_events_of_one_moment_come_newest_first(harbour: Harbour) -> None:
    steps = [f"step-{number}" for number in range(12)]
    harbour.clock.at_ms += 2_000
    for step in steps:
        harbour.event("camera-2", EventKind.UPDATE_STEP, package="00", step=step)
    text = await page(harbour)
    assert re.findall(r"00 (step-\d+)<", text) == steps[::-1]


async def test_a_rollout_to_no_devices_says_so_and_shows_no_waves(empty: Harbour) -> None:
    package = empty.release("1", seed=0, accuracy=0.9)
    begun = Rollout(id="r-0", model=MODEL, package=package, version="1", waves=(1, 1.0), gate=Gate())
    with empty.db.write() as connection:
        store.insert(connection, begun, empty.clock())
        running = state.move(begun, State.RUNNING)
        store.save(connection, begun, running, empty.clock())
        store.save(connection, running, state.move(running, State.DONE), empty.clock())
    text = await page(empty)
    panel = text[text.index('id="rollout-r-0"') : text.index('id="runs"')]
    assert "done at once: no devices yet" in panel
    assert "waves" not in panel
    assert text.index("rollout done") < text.index("rollout created")


async def test_an_empty_server_teaches_the_next_commands(empty: Harbour) -> None:
    text = await page(empty)
    assert "shoal devices claim --device camera-1" in text
    assert "shoal-agent enrol --server http://shoal.test --claim TOKEN --device camera-1" in text
    assert "shoal rollouts create MODEL VERSION" in text
    assert "shoal runs start MODEL" in text
    assert "Nothing judged yet" in text
    assert "Nothing has happened yet" in text
    assert chart(text)["series"] == []


async def test_hostile_text_is_shown_and_never_obeyed(harbour: Harbour) -> None:
    harbour.report(
        "camera-1",
        ReportedModel(version="1", package="00", step=UpdateStep.FAILED, target="11", reason=HOSTILE),
        name=MODEL,
    )
    harbour.event("camera-1", EventKind.UPDATE_FAILED, package="00", reason=HOSTILE)
    harbour.clock.at_ms += 2_000
    values = {"model": MODEL, "kind": "drift", "device": HOSTILE, "opened_at_ms": harbour.clock(), "reason": HOSTILE}
    with harbour.db.write() as connection:
        connection.execute(sa.insert(alerts).values(values))
    text = await page(harbour)
    assert HOSTILE in unescape(text)
    tags = Tags(text).found
    assert not any(tag == "img" and attributes.get("src") == "x" for tag, attributes in tags)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert all(attributes.get("src") for tag, attributes in tags if tag == "script")
    assert "49" not in row(text, "camera-1").split()


async def test_nothing_inline_needs_an_exception_from_the_security_policy(harbour: Harbour) -> None:
    async with harbour.client(harbour.session()) as client:
        answer = await client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    tags = Tags(answer.text).found
    assert not any("style" in attributes or tag == "style" for tag, attributes in tags)
    for tag, attributes in tags:
        for name in {"script": ["src"], "link": ["href"], "img": ["src"]}.get(tag, []):
            assert str(attributes[name]).startswith("/static/")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-frame-options"] == "DENY"


async def test_the_live_part_is_the_inside_of_the_page(harbour: Harbour) -> None:
    whole, part = await page(harbour), await page(harbour, "/console/live")
    assert part.strip() in whole
    assert "<html" not in part


async def test_the_live_part_shows_what_has_changed(harbour: Harbour) -> None:
    before = await page(harbour, "/console/live")
    harbour.clock.at_ms += 2_000
    harbour.event("camera-2", EventKind.OUTBOX_DROPPED, reason="disk full: 12 samples dropped")
    after = await page(harbour, "/console/live")
    assert "12 samples dropped" not in before
    assert "12 samples dropped" in after


async def test_viewers_within_a_second_share_one_reading(harbour: Harbour) -> None:
    first = harbour.console.read()
    assert harbour.console.read() is first
    harbour.clock.at_ms += 1_000
    assert harbour.console.read() is not first


async def test_a_long_table_is_cut_and_says_so(empty: Harbour) -> None:
    for number in range(MOST_ROWS + 3):
        empty.enrol(f"camera-{number:04}")
    text = await page(empty)
    assert text.count('<tr id="device-') == MOST_ROWS
    assert "and 3 more:" in text


async def test_without_a_session_the_page_sends_to_the_login(empty: Harbour) -> None:
    async with empty.client() as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


@pytest.mark.parametrize("session", [None, "forged"])
async def test_without_a_session_the_live_part_is_refused(empty: Harbour, session: str | None) -> None:
    async with empty.client(session) as client:
        answer = await client.get("/console/live")
    assert answer.status_code == 401
    assert "shoal login" in answer.json()["error"]


async def test_a_session_that_was_ended_shows_nothing_more(empty: Harbour) -> None:
    session = empty.session()
    empty.access.logout(session)
    async with empty.client() as client:
        client.cookies.set(SESSION_COOKIE, session)
        assert (await client.get("/")).status_code == 303
