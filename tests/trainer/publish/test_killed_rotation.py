"""A rotation that is cut off at any change of the disk leaves a folder that the next command finishes or undoes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.trainer.publish.stock_client import StockClient
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder

PATH = "digits/1/manifest.json"


def test_after_a_kill_at_any_change_of_the_disk_the_next_command_goes_on(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path / "keys")
    ImageSigning(keys).create(("digits",))
    ImageSigning(keys).add_target("digits", PATH, 7, "1" * 64)
    before = {name: keys.signer(name).public_key.keyid for name in keys.names()}
    command = [
        sys.executable,
        "-m",
        "tests.trainer.publish.killed_rotation",
        str(keys.folder),
        str(tmp_path / "copies"),
    ]
    ended = subprocess.run(
        [*command, "publisher/digits", "snapshot", "timestamp"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    copies = [Path(line) for line in ended.stdout.splitlines()]
    assert len(copies) > 12
    finished = 0
    for number, folder in enumerate(copies):
        state = tmp_path / "devices" / str(number)
        assert StockClient(state, keys.folder / "image").target(PATH) is not None
        device = StockClient(state, folder / "image")
        signing = ImageSigning(KeyFolder(folder))
        assert signing.add_target("digits", "digits/2/manifest.json", 7, "2" * 64), folder
        assert device.target("digits/2/manifest.json") is not None, folder
        after = {name: KeyFolder(folder).signer(name).public_key.keyid for name in KeyFolder(folder).names()}
        changed = {name for name in before if before[name] != after[name]}
        assert changed in (set(), {"publisher/digits", "publisher/snapshot", "publisher/timestamp"}), folder
        finished += bool(changed)
        assert not (folder / "pending.json").exists()
        assert not (folder / "pending-keys").exists()
    assert 0 < finished < len(copies), "some were undone, some finished"
