"""The device's page to browse its API, in a real browser: what is asserted is what a person would see."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.config import ApiSettings, AppSettings
from edge_agent.contract.messages import LabelBatch
from edge_agent.contract.topics import Stream
from tests.e2e.browser import Browser, browser
from tests.fakes.packages import make_package
from tests.fakes.sensor_package import make_sensor_package
from tests.fakes.serving_device import EVERYTHING, Device, serving

pytestmark = pytest.mark.real_parts("chromium", "chromedriver")

_DRAWN = "return document.querySelector('section.card, p.bad') !== null"
_SECTION = (
    "const card = [...document.querySelectorAll('section.card')]"
    ".find(one => one.querySelector('h3').firstChild.data === '%s');"
)


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], Path]) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    with browser(program("chromedriver"), program("chromium"), folder / "profile") as opened:
        opened.look(width=1100, height=900)
        yield opened


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("device")
    make_package(folder / "models" / "digits", sampling=EVERYTHING)
    make_sensor_package(folder / "models" / "sensor", readings=5000)
    with serving(folder) as device:
        yield device


def _open(view: Browser, device: Device) -> None:
    view.console()
    view.open(f"{device.api.addresses['api']}/docs")
    view.wait(_DRAWN)


def _try(view: Browser, model: str) -> str:
    """Open "Try it" of a model, send the example; what the page then says."""
    card = _SECTION % model
    view.run(f"{card} card.querySelectorAll('details')[0].open = true")
    view.wait(f"{card} return card.querySelector('textarea').value.length > 2")
    view.run(f"{card} card.querySelector('form').requestSubmit()")
    said = f"{card} const said = card.querySelector('form p.good, form p.bad'); return said && said.textContent"
    return str(view.wait(said))


def test_the_page_shows_every_model_and_its_contract_without_a_complaint(view: Browser, device: Device) -> None:
    _open(view, device)
    assert view.run("return [...document.querySelectorAll('h3')].map(one => one.firstChild.data)") == [
        "digits",
        "sensor-guard",
    ]
    text = str(view.run("return document.body.innerText"))
    for words in (
        "rows \u00d7 64",
        "from 0 to 1",
        "in Cel",
        "one of 1, 2, 4",
        "range: clip",
        "from 3 to 12 characters",
        "version 1",
        "default",
        "curl -s ",
    ):
        assert words in text
    assert view.run("return document.documentElement.scrollWidth <= innerWidth") is True
    view.look(width=390, height=800, dark=True)
    view.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert view.run("return document.documentElement.scrollWidth <= innerWidth") is True
    hidden = "return [...document.querySelectorAll('td, .scroll')].filter(one => one.scrollWidth > one.clientWidth || "
    assert view.run(f"{hidden} one.getBoundingClientRect().right > innerWidth).length") == 0, "a phone shows every cell"
    view.look(width=1100, height=900)
    assert view.console() == []  # of the security policy too


@pytest.mark.parametrize("model", ["digits", "sensor-guard"])
def test_an_example_is_sent_and_answered(view: Browser, device: Device, model: str) -> None:
    _open(view, device)
    assert _try(view, model).startswith("200 after ")
    answer = view.run(f"{_SECTION % model} return card.querySelector('form pre').textContent")
    assert '"probabilities"' in answer
    assert view.console() == []


def test_a_wrong_request_shows_what_is_wrong(view: Browser, device: Device) -> None:
    _open(view, device)
    card = _SECTION % "digits"
    view.run(f"""{card} card.querySelectorAll('details')[0].open = true;
        card.querySelector('textarea').value = '{{"inputs": []}}'; card.querySelector('form').requestSubmit()""")
    shown = f"{card} const pre = card.querySelector('form pre'); return pre && pre.textContent"
    assert "the request lacks this input" in view.wait(shown)


def test_feedback_is_given(view: Browser, device: Device) -> None:
    request = device.ask_json("GET", "/openapi/examples/digits")[1]
    del request["parameters"]
    device.ask_json("POST", "/v2/models/digits/infer", request)
    _open(view, device)
    card = _SECTION % "digits"
    view.run(f"""{card} const part = card.querySelectorAll('details')[1]; part.open = true;
        part.querySelector('input').value = 'example'; part.querySelector('select').value = '7';
        part.querySelector('form').requestSubmit()""")
    view.wait(f"{card} return card.querySelectorAll('details')[1].querySelector('p.good') !== null")
    (batch,) = device.sent(Stream.LABELS, LabelBatch)
    assert [(label.request_id, label.label) for label in batch.labels] == [("example", "7")]


def test_every_other_request_can_be_sent(view: Browser, device: Device) -> None:
    _open(view, device)
    sent = view.run("""
        const forms = [...document.querySelectorAll('.ops form')]
          .filter(form => !form.parentNode.textContent.includes('load'));
        for (const form of forms) { form.parentNode.open = true;
          for (const field of form.querySelectorAll('input[required]')) field.value = '1';
          form.requestSubmit(); }
        return forms.length""")
    view.wait(f"return document.querySelectorAll('.ops p.good').length === {sent}")
    assert view.console() == []


def test_a_device_with_tokens_asks_for_one(view: Browser, tmp_path: Path) -> None:
    make_package(tmp_path / "models" / "digits")
    phone = AppSettings(name="phone", token_sha256=hashlib.sha256(b"phone-token").hexdigest())
    with serving(tmp_path, ApiSettings(port=0, apps=(phone,))) as device:
        _open(view, device)
        assert "401: this needs a token" in view.run("return document.body.innerText")
        view.run(
            "document.getElementById('token').value = 'phone-token'; document.getElementById('access').requestSubmit()"
        )
        view.wait("return document.querySelector('section.card') !== null")
        assert _try(view, "digits").startswith("200 after ")
