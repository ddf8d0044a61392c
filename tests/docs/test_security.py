"""The commands of docs/security.md, as they stand there and in that order, on real keys and a real server."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

import fleet_server.cli
from tests.fakes.packages import make_package
from tests.fleet_server.running_server import Running, server
from tests.trainer.publish.stock_client import StockClient

_PAGE = Path(__file__).parents[2] / "docs/security.md"
_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LOST = "## When a key is lost or stolen"


def blocks(section: str) -> list[list[str]]:
    """The commands of a section, block by block."""
    text = _PAGE.read_text("utf-8").partition(f"{section}\n")[2]
    own = re.split(r"^## |^### ", text, maxsplit=1, flags=re.MULTILINE)[0]
    return [block.splitlines() for block in _BLOCK.findall(own)]


class Reader:
    """Somebody who types what the page says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stack = folder, ExitStack()
        self.environment: dict[str, str] = {}

    def types(self, block: list[str]) -> str:
        """Run a block; gives all that it printed."""
        said = ""
        for line in block:
            words = shlex.split(line)
            if words[0] == "mv":
                shutil.move(words[1], words[2])
                continue
            assert words[0] == "shoal", line
            result = CliRunner().invoke(fleet_server.cli.main, words[1:], env=self.environment, input="y\n")
            assert result.exit_code == 0, f"{line}\n{result.output}{result.stderr}"
            said += result.output
        return said

    def starts_the_server(self) -> Running:
        """Anew, where it runs already."""
        self.stack.close()
        running = self.stack.enter_context(server(self.folder / "DATA"))
        self.environment = {"SHOAL_SERVER": running.url, "SHOAL_TOKEN": running.token}
        return running

    def shown(self, running: Running, path: str) -> bool:
        """Whether a stock client, which has seen all that was shown before, finds a package on the server."""
        mirror = self.folder / "mirror"
        mirror.mkdir(exist_ok=True)
        with running.client() as client:
            names = ["timestamp.json", *(f"{number}.root.json" for number in range(1, 9))]
            for name in names:
                self.keep(client, mirror, name)
            snapshot = json.loads((mirror / "timestamp.json").read_text())["signed"]["meta"]["snapshot.json"]["version"]
            self.keep(client, mirror, f"{snapshot}.snapshot.json")
            meta = json.loads((mirror / f"{snapshot}.snapshot.json").read_text())["signed"]["meta"]
            for name, one in meta.items():
                self.keep(client, mirror, f"{one['version']}.{name}")
        return StockClient(self.folder / "device", mirror).target(path) is not None

    @staticmethod
    def keep(client: httpx.Client, mirror: Path, name: str) -> None:
        answer = client.get(f"/updates/image/{name}")
        if answer.status_code == 200:
            (mirror / name).write_bytes(answer.content)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    one = Reader(tmp_path)
    yield one
    one.stack.close()


def test_the_page_leads_through_all_changes_of_keys(reader: Reader, tmp_path: Path) -> None:
    making, rotating = blocks("### Keys of several persons")
    adding, approving = blocks("### A second signature on releases")
    trainer, director, person, approver = blocks(_LOST)

    reader.types(making)
    running = reader.starts_the_server()
    for version in ("1", "2"):
        make_package(tmp_path / f"build/digits-{version}", version=version, seed=int(version))
        reader.types([f"shoal trainer publish build/digits-{version} --keys KEYS"])
    assert reader.shown(running, "digits/2/manifest.json")

    said = reader.types(rotating)
    assert "dry run: nothing was changed" in said
    assert "missing of: offline/anna/image-root, offline/ben/image-root, offline/carla/image-root" in said
    assert reader.shown(running, "digits/1/manifest.json")

    reader.types(adding)
    make_package(tmp_path / "build/faces-1", name="faces")
    said = reader.types(approving[:1])
    assert "waits for approval: 1 of 2 signatures are missing" in said
    assert not reader.shown(running, "faces/1/manifest.json")
    said = reader.types(approving[1:])
    assert "nothing waits" in said
    assert reader.shown(running, "faces/1/manifest.json")

    reader.types(trainer)
    assert reader.shown(running, "digits/1/manifest.json")
    assert not reader.shown(running, "digits/2/manifest.json")

    old = (tmp_path / "DATA/keys/director.pem").read_bytes()
    reader.types(director)
    assert (tmp_path / "DATA/keys/director.pem").read_bytes() != old
    running = reader.starts_the_server()
    assert reader.shown(running, "faces/1/manifest.json")

    reader.types(person)
    reader.types(approver)
    assert reader.shown(running, "faces/1/manifest.json")
    make_package(tmp_path / "build/faces-2", name="faces", version="2", seed=5)
    reader.types(["shoal trainer publish build/faces-2 --keys KEYS"])
    reader.types(["shoal models approve faces 2 --key persons/dora-again/approver.pem", "shoal keys publish KEYS"])
    assert reader.shown(running, "faces/2/manifest.json")
