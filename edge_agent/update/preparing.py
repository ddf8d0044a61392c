"""From a wish of the server to a package that is whole, verified and in its place on the disk."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil

from edge_agent.contract.errors import BudgetExceeded, DeviceError, ManifestError, NetworkError, ShoalError
from edge_agent.contract.manifest import Manifest
from edge_agent.contract.messages import DesiredModel, Hardware, UpdateStep
from edge_agent.contract.signature import Signature
from edge_agent.runtime.budget import MemoryBudget, estimate_bytes
from edge_agent.runtime.package import Package
from edge_agent.runtime.slots import Slots
from edge_agent.update import fitness, transitions
from edge_agent.update.groups import Versions
from edge_agent.update.journal import Journal
from edge_agent.update.outcome import Unfit, blaming
from edge_agent.update.package_store import PackageStore
from edge_agent.update.slots_file import SlotRecord

if TYPE_CHECKING:
    from edge_agent.update.resolver import ResolvedTarget


@dataclasses.dataclass(frozen=True)
class Coming:
    """A package that is wanted, signed by both repositories, and fits this device.

    Args:
        digest: Of the package; ``manifest``: its own.
        is_here: It is whole on the disk, and need not be downloaded.
    """

    model: str
    wanted: DesiredModel
    digest: str
    manifest: Manifest
    is_here: bool


@dataclasses.dataclass(frozen=True)
class Device:
    """What packages are held against before they are downloaded; what is None is not asked.

    Args:
        memory: What models may take.
        still_fits: Gives what of the requests that applications here send a model's new signature would refuse.
        total_bytes, available_bytes: Memory of the machine.
    """

    hardware: Hardware | None = None
    memory: MemoryBudget | None = None
    still_fits: Callable[[str, Signature], Sequence[str]] | None = None
    total_bytes: Callable[[], int] = lambda: psutil.virtual_memory().total
    available_bytes: Callable[[], int] = lambda: psutil.virtual_memory().available


class Preparing:
    """Brings packages to the disk.

    Args:
        resolve: Asks both repositories: model and lowest release.
        between_chunks: Called again and again during downloads; what it raises breaks them off.
        collect: Removes packages that nothing needs.
    """

    def __init__(
        self,
        journal: Journal,
        store: PackageStore,
        slots: Slots,
        device: Device,
        *,
        resolve: Callable[[str, int], ResolvedTarget],
        between_chunks: Callable[[], None],
        collect: Callable[[], None],
    ) -> None:
        self._journal, self._store, self._slots, self._device = journal, store, slots, device
        self._resolve, self._between_chunks, self._collect = resolve, between_chunks, collect
        self._lacked: dict[str, tuple[str, Manifest]] = {}

    def target(self, model: str, wanted: DesiredModel) -> ResolvedTarget:
        """What both repositories name.

        Raises:
            MetadataRefused, NetworkError, StorageFull, StorageNotWritable: As they say.
        """
        target = self._resolve(model, self._journal.get(model).release)
        if target.release < wanted.release:
            raise NetworkError(
                f"{model}: release {wanted.release} was announced, the director has signed {target.release} so far"
            )
        return target

    def from_disk(self, model: str, wanted: DesiredModel) -> Coming | None:
        """What was staged before for this very release, as both repositories signed it; None where it is not whole."""
        record = self._journal.get(model)
        staged = record.step in transitions.HERE
        if not staged or (record.target, record.release) != (wanted.package, wanted.release):
            return None
        package = self._whole(record.target)
        return None if package is None else Coming(model, wanted, record.target, package.manifest, is_here=True)

    def begin(self, model: str, wanted: DesiredModel, target: ResolvedTarget) -> Coming:
        """Get the manifest of a package, and hold it against what this device is.

        Raises:
            PackageError: The package is wrong.
            Unfit, BudgetExceeded: This device cannot run it.
            NetworkError, StorageFull, StorageNotWritable: As they say.
        """
        record = self._journal.get(model)
        lacked, manifest = self._lacked.pop(model, ("", None))
        tried = (record.step, record.target, record.release) == (UpdateStep.FAILED, target.digest, target.release)
        if tried and lacked == target.digest and manifest is not None:  # as long as it does, nothing is written down
            with self._noting_what_lacks(model, target.digest, manifest):
                self._store.check_room(target.digest, manifest)
                self._check(target.digest, manifest)
        if not transitions.is_under_way(record, target.digest, target.release):
            announced = msgspec.structs.replace(record, announced=wanted.release)
            begun = transitions.begun(announced, target.digest, release=target.release, rollout=target.rollout)
            self._journal.step({model: begun})
            if record.target not in ("", target.digest):
                self._collect()  # what is left of a release that is wanted no more may be in the way
        package = self._whole(target.digest)
        if package is not None:
            manifest = package.manifest
        else:
            self._advance(model, UpdateStep.DOWNLOADING)
            manifest = self._store.fetch_manifest(target.digest, target.length, between_chunks=self._between_chunks)
        if (manifest.name, manifest.version) != (model, target.version):
            raise ManifestError(
                f"the signed target is {model} {target.version}, its manifest says {manifest.name} {manifest.version}"
            )
        with self._noting_what_lacks(model, target.digest, manifest):
            self._check(target.digest, manifest)
        return Coming(model, wanted, target.digest, manifest, is_here=package is not None)

    def fetch(self, group: Sequence[Coming]) -> None:
        """Download, verify and stage all of a group.

        Raises:
            MemberFailed: For the sake of whom; its cause is NetworkError or DeviceError.
        """
        lacking = [each for each in group if not each.is_here]
        for each in lacking:
            with blaming(each.model):
                self._advance(each.model, UpdateStep.DOWNLOADING)
                with self._noting_what_lacks(each.model, each.digest, each.manifest):
                    self._store.fetch_files(each.digest, each.manifest, between_chunks=self._between_chunks)
                self._advance(each.model, UpdateStep.VERIFIED)
        for each in lacking:
            with blaming(each.model):
                self._store.stage(each.digest)
        records = {each.model: self._journal.get(each.model) for each in group}
        staged = {
            model: transitions.at(record, UpdateStep.STAGED)
            for model, record in records.items()
            if record.step not in transitions.HERE
        }
        if staged:
            with blaming(next(iter(staged))):
                self._journal.step(staged)

    @contextlib.contextmanager
    def _noting_what_lacks(self, model: str, digest: str, manifest: Manifest) -> Iterator[None]:
        """What lacks room or memory is tried again and again: the next attempt begins with a look at just that."""
        try:
            yield
        except DeviceError:
            self._lacked[model] = (digest, manifest)
            raise

    def _advance(self, model: str, step: UpdateStep) -> None:
        record = self._journal.get(model)
        if record.step is not step:
            self._journal.step({model: transitions.at(record, step)})

    def _whole(self, digest: str) -> Package | None:
        try:
            return self._store.open(digest, verify=True)
        except ShoalError:
            return None

    def _check(self, digest: str, manifest: Manifest) -> None:
        device = self._device
        reasons = fitness.lacking(manifest.requires, device.hardware) if device.hardware is not None else []
        total_bytes = device.total_bytes()
        # The folder is not read: what a package will take is told by its manifest.
        package = Package(folder=Path(digest), manifest=manifest, digest=digest)
        reason, for_good = fitness.memory_lacking(
            estimate_bytes(package), total_bytes=total_bytes, available_bytes=device.available_bytes()
        )
        if reason and for_good:
            reasons.append(reason)
        if reasons:
            raise Unfit(fitness.named(manifest, reasons))
        refused = device.still_fits(manifest.name, manifest.signature) if device.still_fits is not None else ()
        if refused:  # applications change, and what they sent long ago is forgotten
            raise DeviceError(
                fitness.named(manifest, [f"does not fit what applications here send: {'; '.join(refused)}"])
            )
        if reason:
            raise BudgetExceeded(fitness.named(manifest, [reason]))
        if device.memory is not None:
            device.memory.check(package, replaces=self._slots.last_served(manifest.name))


def versions_here(journal: Mapping[str, SlotRecord], slots: Slots) -> dict[str, Versions]:
    """What is on this device of each model: of those that were installed the active version, and what lies beside."""
    active: dict[str, str] = {}
    beside: dict[str, set[str]] = {}
    for entry in slots.index():
        record = journal.get(entry.name)
        if record is not None and entry.digest == record.active:
            active[entry.name] = entry.version
        elif record is None or entry.digest != record.last_known_good:  # which goes later
            beside.setdefault(entry.name, set()).add(entry.version)
    return {
        model: Versions(active.get(model, ""), frozenset(beside.get(model, ())))
        for model in active.keys() | beside.keys()
    }
