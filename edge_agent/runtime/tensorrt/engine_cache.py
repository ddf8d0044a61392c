"""Engines, kept: found by their key, or by their family where they can be refitted."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection
from pathlib import Path

import msgspec

from edge_agent.durable import write_durably
from edge_agent.runtime.kept_files import KeptFiles
from edge_agent.runtime.tensorrt.job import EngineFacts

PLAN_FILE, FACTS_FILE = "engine.plan", "facts.json"


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    family: str
    engine: EngineFacts


@dataclasses.dataclass(frozen=True)
class KeptEngine:
    """An engine of the cache; its bytes were right when it was found."""

    key: str
    plan: Path
    facts: EngineFacts


class EngineCache:
    """The folder of engines.

    Args:
        folder: In the agent's own; made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._kept = KeptFiles(folder, kind="engine")

    def find(self, key: str) -> KeptEngine | None:
        """The engine of this key, verified by its SHA-256; a damaged one is removed and counts as none."""
        place = self._kept.find(key, needs=PLAN_FILE)
        facts = _facts(place) if place is not None else None
        if place is None or facts is None:
            return None
        return KeptEngine(key, place / PLAN_FILE, facts.engine)

    def find_refittable(self, family: str) -> KeptEngine | None:
        """The newest engine of a family that can be refitted; none where ``family`` is empty."""
        for key in self._kept.keys() if family else ():
            facts = _facts(self._kept.folder / key)
            if facts is not None and facts.family == family and facts.engine.refittable:
                kept = self.find(key)
                if kept is not None:
                    return kept
        return None

    def put(self, key: str, plan: Path, facts: EngineFacts, *, family: str = "") -> KeptEngine | None:
        """Keep a new engine; its plan is moved here.

        Returns:
            None, with a line in the log, where the disk refuses; ``plan`` may then still be where it was.
        """

        def fill(place: Path) -> None:
            write_durably(place / FACTS_FILE, msgspec.json.encode(_Facts(family=family, engine=facts)))
            shutil.move(plan, place / PLAN_FILE)

        place = self._kept.make(key, fill)
        return None if place is None else KeptEngine(key, place / PLAN_FILE, facts)

    def drop(self, key: str, reason: str) -> None:
        """Remove an engine that is of no use; the log says why."""
        self._kept.drop(key, reason)

    def collect(self, keep: Collection[str]) -> None:
        """Remove all engines but those of these keys, and what a crash has left half made."""
        self._kept.collect(keep)


def _facts(place: Path) -> _Facts | None:
    try:
        return msgspec.json.decode((place / FACTS_FILE).read_bytes(), type=_Facts)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
