"""The registry: what is released, and which release is the champion."""

from __future__ import annotations

import pytest

from edge_agent.contract.manifest import digest_of, encode_manifest
from fleet_server.errors import Conflict, NotFound
from fleet_server.models.records import ReleaseState
from tests.fleet_server.fleet import Fleet, manifest


def settle(fleet: Fleet, digest: str, state: ReleaseState) -> None:
    fleet.now_ms += 1
    with fleet.db.write() as connection:
        fleet.models.set_state(connection, digest, state, "test")


def test_the_same_package_twice_is_registered_once(fleet: Fleet) -> None:
    digest = fleet.publish("1")
    assert fleet.publish("1") == digest
    (record,) = fleet.models.get("digits").versions
    assert (record.digest, record.version, record.evaluation) == (digest, "1", {"accuracy": 0.9})
    assert (record.state, record.size_bytes) == (ReleaseState.PUBLISHED, 1000)
    assert record.manifest_bytes == len(encode_manifest(manifest("1")))
    assert fleet.models.manifest(digest) == manifest("1")


def test_a_version_cannot_change_its_content(fleet: Fleet) -> None:
    fleet.publish("1")
    changed = manifest("1", parent="f" * 64)
    with pytest.raises(Conflict, match="give the new content a new version"):
        fleet.models.register(changed, digest_of(encode_manifest(changed)), {})


def test_a_manifest_of_newer_code_is_registered_with_its_own_bytes(fleet: Fleet) -> None:
    data = encode_manifest(manifest("1")).replace(b"{", b'{"comes_later": 1,', 1)
    with pytest.raises(Conflict, match="not those of digest"):
        fleet.models.register(manifest("1"), digest_of(data), {})
    fleet.models.register(manifest("1"), digest_of(data), {}, manifest_bytes=data)
    assert fleet.models.find("digits", "1").manifest_bytes == len(data)


def test_the_champion_is_the_newest_that_a_rollout_took_to_the_fleet(fleet: Fleet) -> None:
    assert fleet.models.champion("digits") is None
    first, second = fleet.publish("1"), fleet.publish("2")
    assert fleet.models.champion("digits") == (second, "2")
    settle(fleet, first, ReleaseState.ROLLED_OUT)
    assert fleet.models.champion("digits") == (first, "1")
    settle(fleet, second, ReleaseState.ROLLED_OUT)
    assert fleet.models.champion("digits") == (second, "2")
    settle(fleet, second, ReleaseState.WITHDRAWN)
    assert fleet.models.champion("digits") == (first, "1")


def test_before_any_rollout_the_newest_published_is_the_champion_halted_ones_never(fleet: Fleet) -> None:
    first = fleet.publish("1")
    fleet.now_ms += 1
    second = fleet.publish("2")
    assert fleet.models.champion("digits") == (second, "2")
    settle(fleet, second, ReleaseState.HALTED)
    assert fleet.models.champion("digits") == (first, "1")


def test_a_withdrawn_package_stays_withdrawn(fleet: Fleet) -> None:
    digest = fleet.publish("1")
    settle(fleet, digest, ReleaseState.WITHDRAWN)
    settle(fleet, digest, ReleaseState.ROLLED_OUT)
    assert fleet.models.find("digits", "1").state is ReleaseState.WITHDRAWN


def test_packages_are_found_by_version_digest_or_its_beginning(fleet: Fleet) -> None:
    digest = fleet.publish("1")
    fleet.publish("2")
    assert {fleet.models.find("digits", name).digest for name in ("1", digest, digest[:8])} == {digest}
    with pytest.raises(NotFound, match="no version or package"):
        fleet.models.find("digits", digest[:7])
    with pytest.raises(NotFound, match="no model"):
        fleet.models.find("letters", "1")


def test_models_are_listed_with_their_versions_newest_first(fleet: Fleet) -> None:
    fleet.publish("1")
    fleet.publish("1", model="letters")
    fleet.now_ms += 1
    fleet.publish("2")
    digits, letters = fleet.models.list()
    assert [one.version for one in digits.versions] == ["2", "1"]
    assert (digits.champion_version, letters.name) == ("2", "letters")
