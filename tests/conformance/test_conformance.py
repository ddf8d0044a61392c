"""The device's TUF client as the public conformance suite runs it: as a program, against a server it does not know.

The suite itself, https://github.com/theupdateframework/tuf-conformance, runs whole where it is installed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import http.server
import importlib.util
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

CLIENT = Path(__file__).with_name("tuf-client")
EXPIRES = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(days=1)


class Repository:
    """A repository made with python-tuf, served by Python's own HTTP server (which knows no Range)."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        (folder / "metadata").mkdir(parents=True)
        (folder / "targets/sub").mkdir(parents=True)
        self.signer = CryptoSigner.generate_ed25519()
        root = Root(expires=EXPIRES)
        for role in ("root", "targets", "snapshot", "timestamp"):
            root.add_key(self.signer.public_key, role)
        self._write("1.root", root)
        self.version = 0

    def publish(self, content: bytes) -> None:
        """Sign version after version of the one target ``sub/file.txt``."""
        self.version += 1
        target = TargetFile.from_data("sub/file.txt", content, ["sha256"])
        (self.folder / f"targets/sub/{target.hashes['sha256']}.file.txt").write_bytes(content)
        version = self.version
        self._write(f"{version}.targets", Targets(version, expires=EXPIRES, targets={target.path: target}))
        meta = {"targets.json": MetaFile(version)}
        self._write(f"{version}.snapshot", Snapshot(version, expires=EXPIRES, meta=meta))
        self._write("timestamp", Timestamp(version, expires=EXPIRES, snapshot_meta=MetaFile(version)))

    def _write(self, name: str, role: Signed) -> None:
        metadata: Metadata[Any] = Metadata(role)
        metadata.sign(self.signer)
        (self.folder / f"metadata/{name}.json").write_bytes(metadata.to_bytes())


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    handler = functools.partial(Quiet, directory=str(tmp_path / "server"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with contextlib.ExitStack() as stack:
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            yield Repository(tmp_path / "server", f"http://127.0.0.1:{server.server_port}")


def run(repository: Repository, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    arguments = [
        "--metadata-dir", str(folder / "metadata"), "--metadata-url", f"{repository.url}/metadata",
        "--target-name", "sub/file.txt", "--target-dir", str(folder / "targets"),
        "--target-base-url", f"{repository.url}/targets", *command,
    ]  # fmt: skip
    return subprocess.run([sys.executable, str(CLIENT), *arguments], capture_output=True, text=True, check=False)


def test_init_refresh_and_download_do_what_the_suite_asks_of_them(repository: Repository, tmp_path: Path) -> None:
    device = tmp_path / "device"
    root = str(repository.folder / "metadata/1.root.json")
    assert run(repository, device, "init", root).returncode == 0, "nothing but the root is needed"
    assert run(repository, device, "refresh").returncode == 1, "there is no timestamp yet"
    repository.publish(b"one")
    assert run(repository, device, "refresh").returncode == 0
    kept = sorted(path.name for path in (device / "metadata").glob("*.json"))
    assert kept == ["root.json", "snapshot.json", "targets.json", "timestamp.json"]
    assert not (device / "targets").exists()
    for content in (b"one", b"two, which is longer"):
        repository.publish(content)
        done = run(repository, device, "download")
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).read_bytes() == content
    assert len(list((device / "targets").iterdir())) == 1, "the file has one name, and no part of it is left"


def test_what_is_signed_by_others_is_exit_code_1_and_changes_nothing(repository: Repository, tmp_path: Path) -> None:
    device = tmp_path / "device"
    run(repository, device, "init", str(repository.folder / "metadata/1.root.json"))
    repository.publish(b"one")
    assert run(repository, device, "refresh").returncode == 0
    before = (device / "metadata/timestamp.json").read_bytes()
    repository.signer = CryptoSigner.generate_ed25519()
    repository.publish(b"two")
    refused = run(repository, device, "download")
    assert refused.returncode == 1
    assert "MetadataRefused" in refused.stderr
    assert (device / "metadata/timestamp.json").read_bytes() == before


@pytest.mark.timeout(1800)
def test_the_public_conformance_suite_passes_whole() -> None:
    spec = importlib.util.find_spec("tuf_conformance")
    if spec is None or spec.origin is None or shutil.which("faketime") is None:
        pytest.skip(
            "the public TUF conformance suite was NOT run. To run it: "
            "pip install 'tuf-conformance @ git+https://github.com/theupdateframework/tuf-conformance', "
            "and install the program faketime (Debian: apt-get install faketime)"
        )
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default",
        f"--rootdir={Path(spec.origin).parent}", str(Path(spec.origin).parent),
        f"--entrypoint={sys.executable} {CLIENT}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(spec.origin).parent.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "failed" not in done.stdout.splitlines()[-1]
