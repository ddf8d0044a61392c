"""The server's part of the keys: ``DATA/keys/director.pem`` and the two roots that it hands to devices."""

from __future__ import annotations

from pathlib import Path

from edge_agent.durable import write_durably
from trainer.publish.errors import SigningKeyError
from trainer.publish.keys import DIRECTOR

DIRECTOR_KEY_FILE, IMAGE_ROOT_FILE, DIRECTOR_ROOT_FILE = "director.pem", "image-root.json", "director-root.json"


def export_trust(folder: Path, data: Path) -> list[Path]:
    """Copy the director's key and the newest roots into ``data/keys``; gives the files written.

    Raises:
        SigningKeyError: The folder lacks them, or ``data`` cannot be written.
    """
    keys = data / "keys"
    wanted = {
        keys / DIRECTOR_KEY_FILE: (folder / f"{DIRECTOR}.pem", 0o600),
        keys / IMAGE_ROOT_FILE: (_newest_root(folder / "image"), 0o644),
        keys / DIRECTOR_ROOT_FILE: (_newest_root(folder / "director"), 0o644),
    }
    try:
        keys.mkdir(parents=True, exist_ok=True)
        for place, (source, mode) in wanted.items():
            write_durably(place, source.read_bytes(), mode=mode)
    except OSError as error:
        raise SigningKeyError(f"{error.filename}: {error.strerror}; is {folder} a folder of keys?") from error
    return list(wanted)


def _newest_root(folder: Path) -> Path:
    roots = sorted(folder.glob("*.root.json"), key=lambda path: int(path.name.split(".")[0]))
    if not roots:
        raise SigningKeyError(f"{folder}: no root metadata; begin with `shoal keys init`")
    return roots[-1]
