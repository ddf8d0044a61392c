"""Who is let in, to what, and how often."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from edge_agent.config import AppSettings
from edge_agent.contract.errors import ConfigurationError, Forbidden, QuotaExceeded, Unauthenticated
from edge_agent.serving.access import Access, check_reach, is_loopback
from edge_agent.serving.peer import Peer, Transport

_HERE = Peer(Transport.TCP, "127.0.0.1", loopback=True)
_AWAY = Peer(Transport.TCP, "10.0.0.7", loopback=False)


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _user(uid: int, gid: int) -> Peer:
    return Peer(Transport.UNIX, pid=1, uid=uid, gid=gid)


def test_with_no_application_named_this_machine_may_everything_and_others_nothing() -> None:
    access = Access(())
    for peer in (_HERE, _user(1000, 1000)):
        app = access.identify(peer, None)
        assert access.identify(peer, "a token that nobody asked for") is app
        access.enter(app, "anything", control=True)
    with pytest.raises(Unauthenticated, match="only programs on this machine may ask"):
        access.identify(_AWAY, None)
    with pytest.raises(Unauthenticated):
        access.identify(_AWAY, "token")
    assert (app.requests, access.unknown) == (2, 2)


def test_each_mark_leads_to_its_application() -> None:
    access = Access(
        (
            AppSettings(name="phone", token_sha256=_sha256("s3cret")),
            AppSettings(name="camera", uid=1001),
            AppSettings(name="exact", uid=1002, gid=50),
            AppSettings(name="group", gid=60),
            AppSettings(name="rest", local=True),
        )
    )
    found = {
        (peer, token): access.identify(peer, token).name
        for peer, token in [
            (_AWAY, "s3cret"),
            (_HERE, "s3cret"),
            (_user(1001, 1), "s3cret"),
            (_user(1001, 60), None),
            (_user(1002, 50), None),
            (_user(1002, 51), None),
            (_user(7, 60), None),
            (_user(7, 7), None),
            (_HERE, None),
        ]
    }
    assert list(found.values()) == ["phone", "phone", "phone", "camera", "exact", "rest", "group", "rest", "rest"]
    for peer in (_AWAY, _HERE, _user(1001, 1)):
        with pytest.raises(Unauthenticated, match="nobody here has this token"):
            access.identify(peer, "S3cret")
    with pytest.raises(Unauthenticated, match="needs a token"):
        access.identify(_AWAY, None)


def test_who_is_named_nowhere_is_told_what_is_known_of_him() -> None:
    access = Access((AppSettings(name="camera", uid=1001),))
    with pytest.raises(Unauthenticated, match="user 7, group 8 is no application here"):
        access.identify(_user(7, 8), None)
    with pytest.raises(Unauthenticated, match=r"in the agent's settings$"):  # frames carry no token
        access.identify(_user(7, 8)._replace(transport=Transport.FRAMES), None)
    with pytest.raises(Unauthenticated, match="needs a token"):
        access.identify(_HERE, None)
    assert access.needs_token
    assert not access.has_tokens


def test_an_application_is_held_to_its_models_and_to_control() -> None:
    access = Access((AppSettings(name="a", uid=1, models=("digits",)), AppSettings(name="b", uid=2, control=True)))
    narrow, wide = access.identify(_user(1, 1), None), access.identify(_user(2, 2), None)
    access.enter(narrow, "digits")
    access.enter(narrow, None)
    with pytest.raises(Forbidden, match="may not ask model 'cats'; it may ask: digits"):
        access.enter(narrow, "cats")
    with pytest.raises(Forbidden, match="control = true"):
        access.enter(narrow, "digits", control=True)
    access.enter(wide, "cats", control=True)
    assert (narrow.requests, narrow.forbidden, wide.requests) == (2, 2, 1)
    assert (narrow.permits("digits"), narrow.permits("cats"), wide.permits("cats")) == (True, False, True)


def test_a_quota_lets_a_burst_through_and_then_its_rate() -> None:
    now = [100.0]
    access = Access((AppSettings(name="a", local=True, requests_per_s=4.0, burst=3),), clock=lambda: now[0])
    app = access.identify(_HERE, None)
    for _ in range(3):
        access.enter(app, "m")
    with pytest.raises(QuotaExceeded, match="more than 4 times a second") as refused:
        access.enter(app, "m")
    assert refused.value.retry_after_s == pytest.approx(0.25)
    now[0] += 0.25
    access.enter(app, "m")
    with pytest.raises(QuotaExceeded):
        access.enter(app, "m")
    now[0] += 1000.0
    for _ in range(3):
        access.enter(app, "m")
    with pytest.raises(QuotaExceeded):
        access.enter(app, "m")
    assert (app.requests, app.over_quota) == (7, 3)


def test_what_is_refused_for_another_reason_costs_no_quota() -> None:
    access = Access((AppSettings(name="a", local=True, models=("m",), requests_per_s=0.001, burst=1),))
    app = access.identify(_HERE, None)
    for _ in range(3):
        with pytest.raises(Forbidden):
            access.enter(app, "other")
    access.enter(app, "m")


@pytest.mark.parametrize(
    ("apps", "text"),
    [
        ([{"name": "a"}], "'a': nothing tells this application"),
        ([{"name": "a", "uid": 1}, {"name": "a", "uid": 2}], "'a' and 'a' have the same name"),
        (
            [{"name": "a", "uid": 1, "gid": 2}, {"name": "b", "uid": 1, "gid": 2}],
            "'a' and 'b' have the same uid and gid",
        ),
        ([{"name": "a", "local": True}, {"name": "b", "local": True}], "the same local"),
        ([{"name": "a", "token_sha256": "0" * 64}, {"name": "b", "token_sha256": "0" * 64}], "the same token_sha256"),
        ([{"name": "a", "local": True, "models": ["Digits!"]}], "no model can be called 'Digits!'"),
    ],
)
def test_entries_that_cannot_be_told_apart_are_refused_at_the_start(apps: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        Access([AppSettings(**{**app, "models": tuple(app.get("models", ["*"]))}) for app in apps])


def test_an_address_off_loopback_needs_a_token() -> None:
    local, phone = AppSettings(name="l", local=True), AppSettings(name="p", token_sha256="0" * 64)
    for host in ("300.1.1.1", "no-such-host.invalid", "a" * 300):
        with pytest.raises(ConfigurationError, match=r"is no address, and no name that is known here .*: give an addr"):
            check_reach(host, unix_sockets=True, apps=(local,))
    for host in ("0.0.0.0", "::", "192.168.1.5"):
        with pytest.raises(ConfigurationError, match="no application has a token: listen on 127"):
            check_reach(host, unix_sockets=True, apps=(local,))
        check_reach(host, unix_sockets=False, apps=(local, phone))
    for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost", ""):
        check_reach(host, unix_sockets=False, apps=())
    with pytest.raises(ConfigurationError, match="'c' is known by user or group only"):
        check_reach("127.0.0.1", unix_sockets=False, apps=(AppSettings(name="c", gid=4),))


@pytest.mark.parametrize(
    ("host", "known"), [("::1%lo", True), ("fe80::1%eth0", False), ("127.0.0.1", True), ("a" * 300, False)]
)
def test_addresses_of_this_machine_are_known(host: str, known: bool) -> None:
    assert is_loopback(host) is known


def test_many_who_are_known_do_not_make_the_memory_grow() -> None:
    access = Access((AppSettings(name="rest", local=True),))
    for uid in range(3000):
        assert access.identify(_user(uid, uid), None).name == "rest"
    assert len(access._found) <= 1024
