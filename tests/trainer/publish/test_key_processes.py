"""`shoal` as processes: a change of keys that two persons sign, each with a process of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.fleet_server.running_server import shoal


def test_two_persons_sign_a_rotation_with_processes_of_their_own(tmp_path: Path) -> None:
    keys, persons = tmp_path / "keys", tmp_path / "persons"
    made = shoal("keys", "init", keys, "--threshold", "2", "--keys", "3", "--model", "digits")
    assert made.returncode == 0, made.stderr
    shutil.move(keys / "offline", persons)
    begun = shoal("keys", "rotate", keys, "root", "--key", "person-1")
    assert begun.returncode == 0, begun.stderr
    assert "Signatures are missing" in begun.stdout
    assert "Give" in begun.stdout, "the new key goes to its person"
    wrong = shoal("keys", "sign", keys, "--key", persons / "person-1/director-root.pem")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "of no use to this change" in wrong.stderr
    unasked = shoal("keys", "sign", keys, "--key", persons / "person-1")
    assert unasked.returncode == 1, "nobody is there to say yes"
    assert "signed" not in unasked.stdout
    first = shoal("keys", "sign", keys, "--key", persons / "person-1", "--yes")
    assert "not in force" in first.stdout, first.stderr
    second = shoal("keys", "sign", keys, "--key", persons / "person-2", "--yes")
    assert "in force here" in second.stdout, second.stderr
    assert "shoal keys publish" in second.stdout, "what is left to do"
    assert (keys / "offline/person-1/image-root.pem").exists()
