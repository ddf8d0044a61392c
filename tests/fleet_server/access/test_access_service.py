"""Tokens, claims, secrets: what lets somebody in, and what no longer does."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from edge_agent.contract.enrolment import EnrolmentRequest
from edge_agent.contract.errors import MalformedRequest
from fleet_server.access.roles import Role
from fleet_server.access.tables import claims, tokens
from fleet_server.errors import Conflict, Forbidden, NotFound
from tests.fleet_server.fleet import BROKER, HARDWARE, Fleet


def enrol(fleet: Fleet, claim: str, device: str) -> str:
    request = EnrolmentRequest(claim=claim, device=device, hardware=HARDWARE)
    return fleet.access.enrol(request, server="http://server", broker=BROKER).secret


def test_a_role_may_do_what_the_lower_ones_may() -> None:
    assert [Role.TRAINER.allows(role) for role in Role] == [True, True, False]


def test_a_token_is_known_by_its_role_until_it_is_revoked(fleet: Fleet) -> None:
    token = fleet.access.create_token(Role.TRAINER, "nightly")
    assert fleet.access.verify(token) is Role.TRAINER
    (listed,) = fleet.access.tokens()
    assert (listed["name"], listed["role"]) == ("nightly", "trainer")
    assert fleet.access.name_of(token) == "nightly"
    fleet.access.revoke_token(listed["id"])
    assert fleet.access.verify(token) is None
    assert not fleet.access.name_of(token)
    with pytest.raises(NotFound):
        fleet.access.revoke_token(listed["id"])


def test_no_secret_is_stored(fleet: Fleet, tmp_path: object) -> None:
    secrets = [fleet.access.create_token(Role.ADMIN, "a"), fleet.access.create_login(), fleet.access.create_claim()]
    secrets.append(fleet.join("d0").secret)
    with fleet.db.read() as connection:
        tables = ("access_tokens", "access_claims", "device_secrets")
        stored = repr([connection.execute(sa.text(f"SELECT * FROM {table}")).all() for table in tables])  # noqa: S608
    assert not [secret for secret in secrets if secret in stored]


def test_a_login_link_works_once_and_not_after_its_hour(fleet: Fleet) -> None:
    link = fleet.access.create_login()
    assert fleet.access.verify(link) is None  # it is no token by itself
    session = fleet.access.login(link)
    assert session is not None
    assert fleet.access.verify(session) is Role.ADMIN
    assert fleet.access.login(link) is None
    late = fleet.access.create_login(ttl_s=3600)
    fleet.now_ms += 3_600_000
    assert fleet.access.login(late) is None
    fleet.access.logout(session)
    assert fleet.access.verify(session) is None


def test_a_session_ends_by_itself(fleet: Fleet) -> None:
    session = fleet.access.login(fleet.access.create_login())
    assert session is not None
    fleet.now_ms += 7 * 86_400_000
    assert fleet.access.verify(session) is None


def test_a_claim_enrols_one_device_once(fleet: Fleet) -> None:
    claim = fleet.access.create_claim()
    secret = enrol(fleet, claim, "camera-7")
    assert fleet.access.verify_device("camera-7", secret)
    assert not fleet.access.verify_device("camera-8", secret)
    assert fleet.devices.get("camera-7").hardware == HARDWARE
    with pytest.raises(Forbidden, match="used already"):
        enrol(fleet, claim, "camera-8")
    assert [device.name for device in fleet.devices.list()] == ["camera-7"]


def test_a_claim_expires_and_may_be_bound_to_a_name(fleet: Fleet) -> None:
    with pytest.raises(Forbidden, match="not known"):
        enrol(fleet, "made-up", "camera-7")
    with pytest.raises(Forbidden, match="bound to another device"):
        enrol(fleet, fleet.access.create_claim("camera-7"), "camera-8")
    claim = fleet.access.create_claim(ttl_s=60)
    fleet.now_ms += 60_000
    with pytest.raises(Forbidden, match="expired"):
        enrol(fleet, claim, "camera-7")


def test_an_enrolled_name_is_taken_over_only_with_a_claim_bound_to_it(fleet: Fleet) -> None:
    old = enrol(fleet, fleet.access.create_claim(), "camera-7")
    with pytest.raises(Conflict, match="enrolled already"):
        enrol(fleet, fleet.access.create_claim(), "camera-7")
    assert fleet.access.verify_device("camera-7", old)
    new = enrol(fleet, fleet.access.create_claim("camera-7"), "camera-7")
    assert fleet.access.verify_device("camera-7", new)
    assert not fleet.access.verify_device("camera-7", old)


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "+", "#", "$server", "server", "import", "a" * 64])
def test_names_that_would_break_topics_or_paths_are_refused(fleet: Fleet, name: str) -> None:
    with pytest.raises(MalformedRequest):
        enrol(fleet, fleet.access.create_claim(), name)


def test_a_revoked_device_is_shut_out_until_it_is_claimed_anew(fleet: Fleet) -> None:
    device = fleet.join("camera-7")
    fleet.access.revoke_device("camera-7")
    assert not fleet.access.verify_device("camera-7", device.secret)
    assert not fleet.access.is_active("camera-7")
    assert fleet.devices.get("camera-7").revoked
    secret = enrol(fleet, fleet.access.create_claim("camera-7"), "camera-7")
    assert fleet.access.verify_device("camera-7", secret)
    with pytest.raises(NotFound):
        fleet.access.revoke_device("camera-9")


def test_what_has_been_over_for_a_day_is_forgotten_and_nothing_else(fleet: Fleet) -> None:
    api = fleet.access.create_token(Role.ADMIN, "a")
    session = fleet.access.login(fleet.access.create_login(ttl_s=60))
    assert session is not None
    fleet.join("d0")  # by a claim
    old = fleet.access.create_claim("d1", ttl_s=60)

    def rows() -> list[int]:
        with fleet.db.read() as connection:
            return [connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in (tokens, claims)]

    fleet.now_ms += 3_700_000
    fleet.access.prune(fleet.now_ms)
    assert rows() == [3, 2]
    with pytest.raises(Forbidden, match="expired"):
        enrol(fleet, old, "d1")
    fleet.now_ms += 86_400_000
    fleet.access.prune(fleet.now_ms)
    assert rows() == [2, 0]
    assert (fleet.access.verify(api), fleet.access.verify(session)) == (Role.ADMIN, Role.ADMIN)
    fleet.now_ms += 8 * 86_400_000
    fleet.access.prune(fleet.now_ms)
    assert rows() == [1, 0]
    assert fleet.access.verify(api) is Role.ADMIN
