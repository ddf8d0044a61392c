"""What is written down of the updates, and what is told of them."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from edge_agent.contract.errors import DeviceError, storage_error
from edge_agent.contract.messages import Event, EventKind, UpdateStep
from edge_agent.figures import without_figures
from edge_agent.update import transitions
from edge_agent.update.slots_file import SLOTS_FILE, SlotRecord, SlotsFile

_SAID_ONCE = frozenset({EventKind.METADATA_REFUSED, EventKind.UPDATE_FAILED, EventKind.STORAGE})
_BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Which start of the machine this is (random(4)); empty where it does not tell."""
    try:
        return _BOOT_FILE.read_text().strip()
    except OSError:
        return ""


class Journal:
    """``slots.json`` with its errors and events. Read from any thread, written from one.

    Args:
        state: The agent's state folder.
        events: Told everything worth knowing; must not block.
        after_step: Called when a step has been written down and before it begins; tests kill the process there.
        boot: See :func:`boot_id`.
    Attributes:
        is_new: The file was damaged and set aside: packages on the disk may belong to models that are not known yet.
            False again once all are that the server names, or their room is needed.
    Raises:
        StorageNotWritable, DeviceError: The file cannot be read.
    """

    def __init__(
        self,
        state: Path,
        events: Callable[[Event], None],
        *,
        utc_now: Callable[[], dt.datetime],
        after_step: Callable[[str, UpdateStep], None],
        boot: str,
    ) -> None:
        self._path = state / SLOTS_FILE
        self._events, self._utc_now, self._after_step, self._boot = events, utc_now, after_step, boot
        self._told: dict[tuple[str, EventKind], tuple[object, ...]] = {}
        self.is_new = False
        self._file = self._read()

    def models(self) -> dict[str, SlotRecord]:
        """All records, by model."""
        return self._file.models()

    def get(self, model: str) -> SlotRecord:
        """The record of a model; an empty one where nothing was ever installed."""
        return self._file.get(model)

    def packages(self) -> set[str]:
        """Digests that must stay on disk."""
        return self._file.packages()

    def start(self) -> str:
        """Count what an agent that did not stop in order has left behind; gives why that cannot be written down."""
        return self.note({model: transitions.started(record, self._boot) for model, record in self.models().items()})

    def put(self, records: Mapping[str, SlotRecord]) -> None:
        """Write records down, all or none; only when this returns may their steps begin.

        Raises:
            StorageFull, StorageNotWritable, DeviceError: The disk refuses; nothing has changed.
        """
        stamped = {model: msgspec.structs.replace(record, boot=self._boot) for model, record in records.items()}
        with self._storage_errors():
            self._file.put_all(stamped)

    def step(self, records: Mapping[str, SlotRecord], reason: str = "") -> None:
        """Write the next step of models down that go together, and tell it.

        Args:
            reason: What led to it, where there is something to say.
        Raises:
            StorageFull, StorageNotWritable, DeviceError: The disk refuses; nothing has changed.
        """
        self.put(records)
        for model, record in records.items():
            said = reason or record.reason
            self.tell(EventKind.UPDATE_STEP, model, record.target, said, step=record.step.value, release=record.release)
        for model, record in records.items():
            self._after_step(model, record.step)

    def committed(self, records: Mapping[str, SlotRecord], reasons: Mapping[str, str]) -> None:
        """Write down that models on probation are good, and tell it.

        Raises:
            StorageFull, StorageNotWritable, DeviceError: The disk refuses; nothing has changed.
        """
        self.put(records)
        self._told = {key: said for key, said in self._told.items() if key[0] not in records}  # all went well since
        for model, record in records.items():
            self.tell(EventKind.UPDATE_COMMITTED, model, record.active, reasons.get(model, ""), release=record.release)
        for model in records:
            self._after_step(model, UpdateStep.COMMITTED)

    def note(self, records: Mapping[str, SlotRecord]) -> str:
        """Write down what has happened already; a disk that refuses keeps no model from serving.

        What differs from what is on the disk in figures of the reason alone is not worth a write: what lacks 300 bytes
        now and 200 in five minutes lacks the same.

        Returns:
            Why the disk refuses; empty where it does not.
        """
        changed = {model: record for model, record in records.items() if record != self._file.get(model)}
        if all(_is_alike(self._file.written(model), record) for model, record in changed.items()):
            self._file.keep_in_memory(changed)
            return ""
        try:
            self.put(changed)
        except DeviceError as error:
            self._file.keep_in_memory(changed)
            self.tell(EventKind.STORAGE, next(iter(changed)), "", str(error))
            return str(error)
        return ""

    def keep(self, model: str, record: SlotRecord) -> None:
        """Remember what is not worth a write to flash: after a restart it is found out anew."""
        if record != self._file.get(model):
            self._file.keep_in_memory({model: record})

    def fail(self, model: str, record: SlotRecord, kind: EventKind, reason: str, *, refuse: bool) -> SlotRecord:
        """An update is off; what serves goes on.

        Args:
            refuse: Whether the package is to blame.
        """
        after = transitions.failed(record, reason, refuse=refuse)
        self.note({model: after})
        self.tell(kind, model, after.target, reason, release=max(after.announced, after.release))
        return after

    def remove(self, model: str) -> None:
        """Know nothing of a model any more.

        Raises:
            StorageFull, StorageNotWritable, DeviceError: The disk refuses.
        """
        with self._storage_errors():
            self._file.remove(model)

    def tell(self, kind: EventKind, model: str, package: str, reason: str, **detail: str | int) -> None:
        """Tell of something; of a failure that repeats itself, once."""
        if kind in _SAID_ONCE:
            same = (package, without_figures(reason), detail)
            if self._told.get((model, kind)) == same:
                return
            self._told[model, kind] = same
        at_ms = max(0, int(self._utc_now().timestamp() * 1000))  # a clock may stand before 1970
        self._events(Event(kind=kind, at_ms=at_ms, model=model, package=package, reason=reason, detail=dict(detail)))

    def _read(self) -> SlotsFile:
        path = self._path
        with self._storage_errors():
            try:
                return SlotsFile(path)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                file, mended = SlotsFile.mended(path)
                why = str(error)
        self.is_new = not mended
        instead = "what it said one step before holds" if mended else "models come anew from the fleet's server"
        self.tell(EventKind.STORAGE, "", "", f"{path} was damaged ({why}); it is kept as slots.damaged, and {instead}")
        return file

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(error, str(self._path)) or DeviceError(f"{self._path}: {error.strerror}") from error


def _is_alike(written: SlotRecord, record: SlotRecord) -> bool:
    """Whether a record says what the disk says, but for figures in its reason."""
    same = msgspec.structs.replace(written, reason=record.reason, boot=record.boot)
    return same == record and without_figures(written.reason) == without_figures(record.reason)
