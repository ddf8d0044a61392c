"""The page of the REST API in a real browser, under the console's policy and without a word from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fleet_server.data_folder import DataFolder
from tests.e2e.browser import browser
from tests.fleet_server.running_server import server
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder

pytestmark = pytest.mark.real_parts("chromium", "chromedriver")


def test_the_reference_shows_every_operation_and_the_browser_complains_of_nothing(
    tmp_path: Path, program: Callable[[str], Path]
) -> None:
    ImageSigning(KeyFolder(tmp_path / "keys")).create(("digits",))
    data = DataFolder(tmp_path / "data")
    data.prepare()
    data.take_keys(tmp_path / "keys")
    with (
        server(data.root) as running,
        browser(program("chromedriver"), program("chromium"), tmp_path / "profile") as view,
    ):
        view.open(f"{running.url}/api/docs")
        view.wait("return document.querySelectorAll('.opblock-tag').length >= 10")
        view.run("document.querySelector('.opblock-tag[data-tag=rollouts]').click()")
        view.wait("return document.body.innerText.includes('/api/v1/rollouts/{rollout}/halt')")
        view.run("document.querySelector('.opblock-summary-control').click()")
        view.wait("return document.querySelector('.opblock-body') !== null")
        view.look(width=1280, height=900)
        view.screenshot(tmp_path / "reference.png")
        assert view.console() == []
        assert (tmp_path / "reference.png").stat().st_size > 10_000
