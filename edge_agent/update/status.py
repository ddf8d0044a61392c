"""What a state folder tells of its models, in lines for a person; the agent may be stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge_agent.contract.errors import DeviceError, PackageError, storage_error
from edge_agent.contract.manifest import MANIFEST_FILE, Manifest, decode_manifest
from edge_agent.contract.messages import UpdateStep
from edge_agent.runtime.choice import CPU
from edge_agent.runtime.runtimes import RUNTIMES_FILE, RuntimesFile
from edge_agent.update.slots_file import BEFORE_FILE, SLOTS_FILE, SlotRecord, SlotsFile


def status_lines(state: Path) -> Iterator[str]:
    """Each model with what serves and where its update is.

    Raises:
        StorageNotWritable, DeviceError: The folder cannot be read.
    """
    path = state / SLOTS_FILE
    models, damage = _records(path)
    if damage:
        yield damage
    if not models:
        yield "no model is installed"
        return
    runtimes = RuntimesFile(state / RUNTIMES_FILE)
    for model, record in sorted(models.items()):
        manifest = _manifest(state, record.active)
        yield f"{model}"
        yield f"  serves    {_named(record.active, manifest)}{_on(record, manifest, runtimes)}"
        if record.last_known_good not in ("", record.active):
            good = record.last_known_good
            yield f"  back to   {_named(good, _manifest(state, good))}"
        yield f"  update    {_update(state, record)}"
        if record.reason:
            yield f"  because   {record.reason}"
        if record.group:
            yield f"  together  with {', '.join(each for each in record.group if each != model)}"


def _records(path: Path) -> tuple[dict[str, SlotRecord], str]:
    """The records, and what is to be said of a damaged file."""
    try:
        try:
            return SlotsFile(path).models(), ""
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            damage = f"{path} is damaged ({error}); the agent's next start keeps it as slots.damaged"
        try:
            return SlotsFile.before(path), f"{damage} and goes on from what it said one step before:"
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DeviceError(
                f"{damage}. What it said one step before is lost too ({BEFORE_FILE}: {error}): the fleet's models come "
                "anew from its server, and those installed by hand are to be installed again"
            ) from error
    except OSError as error:
        raise storage_error(error, str(path)) or DeviceError(f"{path}: {error.strerror}") from error


def _on(record: SlotRecord, manifest: Manifest | None, runtimes: RuntimesFile) -> str:
    """What it runs on, as far as that is written down: which form of a model is the faster is found at each start."""
    if manifest is None:
        return ""
    if manifest.pipeline:
        return f", a pipeline of {', '.join(step.model for step in manifest.pipeline)}"
    known = runtimes.of(record.active)
    if known is not None and known.is_usable:
        return f", on {known.runtime} {known.precision}"
    return f", on {CPU}"


def _update(state: Path, record: SlotRecord) -> str:
    release = f", release {record.release}" if record.release else ", by hand"
    if record.announced > record.release:
        release += f" (release {record.announced} is announced)"
    words = f"{record.step.value}{release}"
    if record.step is UpdateStep.COMMITTED or record.target in ("", record.active):
        return words
    return f"{words}, to {_named(record.target, _manifest(state, record.target))}"


def _named(digest: str, manifest: Manifest | None) -> str:
    if not digest:
        return "nothing"
    return f"version {manifest.version} ({digest[:12]})" if manifest is not None else f"({digest[:12]})"


def _manifest(state: Path, digest: str) -> Manifest | None:
    """Of a package that is here, or is being put together."""
    for name in (digest, f".gathering-{digest}"):
        with contextlib.suppress(OSError, PackageError):
            return decode_manifest((state / "packages" / name / MANIFEST_FILE).read_bytes())
    return None
