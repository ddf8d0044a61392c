from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from fleet_server.console.assets import Assets
from tests.fleet_server.console.harbour import Harbour

STATIC = Path("fleet_server/console/static")


def test_third_party_files_are_those_that_are_listed_with_licence_and_digest(repository: Path) -> None:
    vendor = repository / STATIC / "vendor"
    table = (vendor / "THIRD_PARTY.md").read_text()
    listed = dict(re.findall(r"`([a-z]+/[\w.-]+\.(?:js|css))` \| `([0-9a-f]{64})`", table))
    found = {str(path.relative_to(vendor)): path for kind in ("js", "css") for path in vendor.rglob(f"*.{kind}")}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()} == listed
    assert all((path.parent / "LICENSE").is_file() for path in found.values())


async def test_a_file_is_served_for_good_under_an_address_of_its_content(empty: Harbour) -> None:
    address = Assets().url("console.js")
    async with empty.client() as client:
        answer = await client.get(address)
        stale = await client.get("/static/console.js?v=old")
        known = await client.get(address, headers={"If-None-Match": answer.headers["etag"]})
        plain = await client.get(address, headers={"Accept-Encoding": "identity"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.headers["content-encoding"] == "gzip"
    assert "immutable" in answer.headers["cache-control"]
    assert stale.headers["cache-control"] == "no-cache"
    assert (known.status_code, known.content) == (304, b"")
    assert plain.text == answer.text
    assert "content-encoding" not in plain.headers


@pytest.mark.parametrize(
    "name", ["nothing.js", "../routes.py", "%2e%2e/routes.py", "vendor", "vendor/THIRD_PARTY.md", ""]
)
async def test_nothing_but_the_listed_files_is_served(empty: Harbour, name: str) -> None:
    async with empty.client() as client:
        assert (await client.get(f"/static/{name}")).status_code == 404
