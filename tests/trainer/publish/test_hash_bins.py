"""Models with more than a thousand packages: bins, and devices that knew the model without them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import DelegatedRole, Delegations, TargetFile, Targets

from tests.trainer.publish.stock_client import StockClient
from tests.trainer.publish.test_persons import succeeds
from trainer.publish.hash_bins import TARGETS_PER_ROLE, bins_of, bits_for, place, replace_all, role_names, targets_of
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder


def path_of(number: int) -> str:
    return f"digits/{number}/manifest.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with exactly a thousand packages."""
    keys = KeyFolder(tmp_path / "keys")
    signing = ImageSigning(keys)
    signing.create(("digits", "faces"))
    roles = signing._roles()
    for number in range(TARGETS_PER_ROLE):
        roles["digits"].targets[path_of(number)] = TargetFile(7, {"sha256": "a" * 64}, path_of(number))
    signing._sign_targets("digits", roles["digits"], "publisher/digits", roles)
    signing._sign_snapshot(roles)
    return keys.folder


def test_the_package_after_the_thousandth_moves_all_into_bins_that_a_stock_client_resolves(
    folder: Path, tmp_path: Path
) -> None:
    device = StockClient(tmp_path / "device", folder / "image")
    assert device.target(path_of(17)) is not None
    signing = ImageSigning(KeyFolder(folder))
    assert bins_of(signing._roles()["digits"]) is None
    assert signing.add_target("digits", path_of(1000), 7, "b" * 64)
    roles = signing._roles()
    assert roles["digits"].targets == {}
    assert sum(name.startswith("digits-bins-") for name in roles) == 16
    device.fetched.clear()
    for number in (17, 999, 1000):
        assert device.target(path_of(number)) is not None
    assert sum("digits-bins-" in name for name in device.fetched) <= 3, "one bin for each package"
    assert device.target(path_of(2000)) is None
    assert len(signing.models()["digits"]) == 1001
    assert signing.models()["faces"] == []


def test_a_release_into_bins_signs_one_of_them(folder: Path) -> None:
    signing = ImageSigning(KeyFolder(folder))
    signing.add_target("digits", path_of(1000), 7, "b" * 64)
    before = {name: role.version for name, role in signing._roles().items()}
    signing.add_target("digits", path_of(1001), 7, "c" * 64)
    after = {name: role.version for name, role in signing._roles().items()}
    assert len({name for name in before if before[name] != after[name]}) == 1
    assert not signing.add_target("digits", path_of(1001), 7, "c" * 64), "it is signed already"


def test_a_models_key_is_revoked_with_all_its_bins(folder: Path, tmp_path: Path) -> None:
    device = StockClient(tmp_path / "device", folder / "image")
    ImageSigning(KeyFolder(folder)).add_target("digits", path_of(1000), 7, "b" * 64)
    assert device.target(path_of(5)) is not None
    succeeds("revoke", folder, "publisher/digits", "--drop", "6")
    assert device.target(path_of(5)) is not None
    assert device.target(path_of(6)) is None
    assert ImageSigning(KeyFolder(folder)).add_target("digits", path_of(1001), 7, "c" * 64)
    assert device.target(path_of(1001)) is not None


def test_bins_grow_in_number_without_ever_sharing_a_name() -> None:
    assert [bits_for(count) for count in (0, 1000, 1001, 16_000, 16_001, 256_000, 256_001)] == [0, 0, 4, 4, 8, 8, 12]


@given(st.sets(st.integers(0, 10**6), max_size=40), st.integers(1, 6))
def test_every_package_is_in_the_one_role_that_a_client_looks_in(numbers: set[int], limit: int) -> None:
    roles = small_repository()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.publish.hash_bins.TARGETS_PER_ROLE", limit)
        for number in sorted(numbers):
            place("digits", roles, path_of(number), TargetFile(number, {"sha256": "a" * 64}, path_of(number)))
    assert {path: one.length for path, one in targets_of("digits", roles).items()} == {path_of(n): n for n in numbers}
    bins = bins_of(roles["digits"])
    for name in role_names("digits", roles):
        for path in roles[name].targets:
            assert name == (bins.get_role_for_target(path) if bins is not None else "digits")
    replace_all("digits", roles, {})
    assert targets_of("digits", roles) == {}


def small_repository() -> dict[str, Targets]:
    rule = DelegatedRole("digits", [], 1, terminating=True, paths=["digits/*/manifest.json"])
    targets = Targets(version=1, delegations=Delegations({}, {"digits": rule}))
    return {"targets": targets, "digits": Targets(version=1)}
