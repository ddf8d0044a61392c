"""Releases that wait for a person: who sees them in the console, and what it says they should do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from fleet_server.updates import approving
from fleet_server.updates.approvals import Approval
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, update_server
from tests.fleet_server.console.harbour import Harbour
from tests.fleet_server.console.test_page import page


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UpdateServer]:
    """A server with a model that either of two persons may approve."""
    (tmp_path / "updates").mkdir()
    with update_server(tmp_path / "updates", models=("faces",)) as running:
        running.signing.add_model("digits", approvers={"ben": None, "dora": None})
        shutil.move(running.keys_folder / "approvers", tmp_path / "persons")
        yield running


def panel(text: str) -> str:
    """The words of the section."""
    found = re.search(r'<section id="approvals".*?</section>', text, re.DOTALL)
    assert found is not None
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", found[0])).split())


def waits(version: str, **fields: object) -> Approval:
    common = {"model": "digits", "package": "ab" * 32, "state": "waiting", "proposed_at_ms": 0, "threshold": 2}
    some = {"missing": 1, "signed": ["publisher/digits"], "unsigned": ["approvers/dora/approver"]}
    return Approval(version=version, **(common | some | fields))  # type: ignore[arg-type]


async def test_a_release_that_waits_is_shown_with_who_has_signed_who_is_needed_and_what_they_type(
    harbour: Harbour, server: UpdateServer, tmp_path: Path
) -> None:
    harbour.waiting = server.approvals.list
    package = make_package(tmp_path / "built/3", version="3", seed=3)
    server.publisher.publish(package)
    text = await page(harbour)
    words = panel(text)
    assert f"digits 3 {package.digest[:8]} waits for approval" in words
    assert "signed by publisher/digits; still needed: 1 of ben, dora" in words
    for person in ("ben", "dora"):
        command = f"shoal models approve digits 3 --key {person}/approver.pem --server http://shoal.test"
        assert command in words
    assert "1 waiting for approval" in text
    refuse = "shoal models reject digits 3 --reason WHY --server http://shoal.test"
    assert f"to refuse it instead, with a token of role admin: {refuse}" in words
    harbour.clock.at_ms += 6_000
    server.approvals.reject("digits", "3", "worse on sevens")
    assert "approvals-title" not in await page(harbour)


async def test_where_nothing_waits_the_page_says_nothing_of_it(harbour: Harbour) -> None:
    assert "approval" not in await page(harbour)


async def test_what_the_publisher_must_do_is_told_from_what_an_approver_must(harbour: Harbour) -> None:
    harbour.waiting = lambda: [
        waits("3", missing=0, unsigned=[]),
        waits("4", missing=0, signed=[], unsigned=[], reason="the publisher must sign it anew: <b>late</b>"),
        waits("_renewal", package=""),
    ]
    text = await page(harbour)
    words = panel(text)
    assert "approved" in words
    assert "reject digits 3" not in words, "what has all its signatures is not refused any more"
    assert "the worker makes it visible within the hour, shoal keys publish KEYS at once" in words
    assert "waits for the publisher" in words
    assert "&lt;b&gt;late" in text
    assert "signatures of what is released, for another lifetime" in words
    assert "shoal models approve digits _renewal --key dora/approver.pem" in words


async def test_a_long_queue_is_cut_and_says_so(harbour: Harbour) -> None:
    harbour.waiting = lambda: [waits(str(number)) for number in range(9)]
    words = panel(await page(harbour))
    assert words.count("waits for approval") == 6
    assert "and 3 more: shoal models approvals" in words


def test_a_name_that_a_shell_would_read_is_quoted() -> None:
    (command,) = approving.commands("digits", "1", 1, ["approvers/$(reboot)/approver"])
    assert command == "shoal models approve digits 1 --key '$(reboot)/approver.pem'"


def test_who_is_needed_is_said_by_name_where_all_are() -> None:
    names = ["approvers/ben/approver", "approvers/dora/approver"]
    assert approving.still_needed(1, names) == "1 of ben, dora"
    assert approving.still_needed(2, names) == "ben, dora"
    assert approving.still_needed(0, names) == ""
    assert approving.commands("digits", "1", 0, names) == []
