"""Packages loaded beside what serves, and tested as a whole before any of them serves."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from edge_agent.contract.errors import BudgetExceeded, DigestMismatch, ModelUnavailable, PackageError, SelfTestFailed
from edge_agent.runtime.beside import Beside
from edge_agent.runtime.package import Package
from edge_agent.runtime.pipeline import ModelSource
from edge_agent.runtime.selftest import prove
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.runtime.statistics import Statistics
from edge_agent.update.outcome import MemberFailed, Spoilt, blaming
from edge_agent.update.package_store import PackageStore

_log = logging.getLogger(__name__)


class Loading(Protocol):
    """Makes a package ready to serve; :func:`edge_agent.runtime.loaded.load`, or a repository's ``prepare``."""

    def __call__(self, package: Package, *, slots: ModelSource | None = None) -> LoadedModel:
        """Load and warm up.

        Args:
            slots: Where a pipeline finds its steps.
        """


@dataclasses.dataclass
class Candidates:
    """Models that are loaded and do not serve yet.

    Args:
        models: Those that come, by name; ``again``: pipelines that serve, loaded once more with their new steps.
    """

    models: dict[str, LoadedModel]
    again: list[LoadedModel]
    beside: Beside

    def close(self) -> None:
        """Give their memory back; those that serve by now stay."""
        self.beside.forget()
        for loaded in (*self.again, *self.models.values()):
            loaded.close()


class CandidateLoader:
    """Loads candidates.

    Args:
        store: Where their packages are; ``slots``: where models serve.
    """

    def __init__(self, store: PackageStore, slots: Slots, load: Loading) -> None:
        self._store, self._slots, self._load = store, slots, load

    def tested(self, digests: Mapping[str, str]) -> Candidates:
        """Packages by model, loaded, and found to answer their golden samples; pipelines with their steps among them.

        Raises:
            MemberFailed: One of them cannot be loaded, or is wrong, or a pipeline that serves would not run with it;
                none is loaded any more.
        """
        return self._loaded(digests, verify=False, test=True)

    def earlier(self, digests: Mapping[str, str]) -> Candidates:
        """Packages by model, verified and loaded: they have proved themselves before.

        Raises:
            MemberFailed: One of them cannot be loaded; none is loaded any more.
        """
        return self._loaded(digests, verify=True, test=False)

    def _loaded(self, digests: Mapping[str, str], *, verify: bool, test: bool) -> Candidates:
        found = Candidates({}, [], Beside(self._slots))
        try:
            packages = {}
            for model, digest in digests.items():
                with blaming(model), told_from_rot(self._store.folder_of(digest), digest):
                    packages[model] = self._store.open(digest, verify=verify)
            for model, package in sorted(packages.items(), key=lambda item: bool(item[1].manifest.pipeline)):
                with blaming(model):
                    found.models[model] = loaded = self._one(package, found.beside, test=test)
                found.beside.add(loaded)
            self._again(found, test=test)
            for loaded in found.models.values():
                loaded.statistics = Statistics()  # a pipeline's tests are no requests to its steps
        except BaseException:
            found.close()
            raise
        return found

    def _one(self, package: Package, beside: Beside, *, test: bool) -> LoadedModel:
        with told_from_rot(package.folder, package.digest):
            loaded = self._load(package, slots=beside) if package.manifest.pipeline else self._load(package)
            if test:
                try:
                    prove(loaded)
                except BaseException:
                    loaded.close()
                    raise
        return loaded

    def _again(self, found: Candidates, *, test: bool) -> None:
        """Load the pipelines once more that serve and have a step among the candidates."""
        for serving in self._slots.models():
            steps = [step.model for step in serving.manifest.pipeline if step.model in found.models]
            if not steps or serving.name in found.models:
                continue
            try:
                found.again.append(self._one(serving.package, found.beside, test=test))
            except (ModelUnavailable, BudgetExceeded):
                continue  # it did not run before either, or finds its new steps by itself
            except Exception as error:
                if not test:  # what is gone back to must serve, whatever becomes of a pipeline
                    _log.warning("pipeline '%s' does not run with its earlier step", serving.name, exc_info=error)
                    continue
                text = f"with it pipeline '{serving.name}' {serving.version}, which serves here, fails: {error}"
                wrong = isinstance(error, PackageError)
                raise MemberFailed(steps[0], SelfTestFailed(text) if wrong else error) from error


@contextlib.contextmanager
def told_from_rot(folder: Path, digest: str) -> Iterator[None]:
    """What is wrong with a package within the block is its own fault only where its bytes are those that were signed.

    Raises:
        Spoilt: They are not; they were when it was staged.
    """
    try:
        yield
    except (PackageError, DigestMismatch) as error:
        try:
            is_whole = Package.open(folder, verify=True).digest == digest
        except (PackageError, DigestMismatch):
            is_whole = False
        if is_whole:
            raise
        where = "" if str(folder) in str(error) else f"{folder}: "
        raise Spoilt(f"the device's disk has changed what was verified: {where}{error}") from error
