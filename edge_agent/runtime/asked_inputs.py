"""What applications on this device have sent lately: a new version must still take it.

Each model's signature says what may be sent; this remembers what is: how many rows, how long dynamic axes are, which
outputs are read, whether a version is asked for by name. It is looked at now and then, about twenty times a second
where requests are many, and each time where they are few.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
from numpy.typing import NDArray

from edge_agent.contract.signature import Signature
from edge_agent.durable import write_durably
from edge_agent.runtime.asked import MOST_VERSIONS, Asked, Window, pinned, still_fits
from edge_agent.runtime.loaded import LoadedModel

__all__ = ["ASKED_FILE", "Asked", "AskedInputs", "WantedName", "pinned", "still_fits"]

log = logging.getLogger(__name__)

ASKED_FILE = "asked.json"

# What was not sent for one such window, and not in the one before it either, is forgotten.
_WINDOW_MS = 14 * 86_400_000
# Looks are so far apart where requests are many.
_LOOK_S = 0.05
_MOST_SKIPPED = 10_000
# Models that are remembered; the ones that were asked longest ago go.
_MOST_MODELS = 64


class WantedName(Protocol):
    """An output that a request wants."""

    @property
    def name(self) -> str:
        """The output's name."""


class _File(msgspec.Struct, kw_only=True):
    models: dict[str, Asked] = {}


class _Known(NamedTuple):
    signature: Signature
    asked: Asked


class AskedInputs:
    """Remembers for all models; every method may be called from any thread.

    Serving takes one off ``left`` for each request, and calls :meth:`note` where that makes it negative: 0.05 us.

    Args:
        versions: Takes out which (model, version) were asked for by name since the last time;
            :meth:`edge_agent.runtime.slots.Slots.take_versions_asked`.
        clock: Unix time in seconds; ``steady``: seconds that never go back.
        uniform: Gives random numbers in [0, 1): who asks in a steady rhythm must not be missed each time.
    Attributes:
        left: Requests until the next look.
    """

    def __init__(
        self,
        versions: Callable[[], Collection[tuple[str, str]]] = tuple,
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._versions, self._clock, self._steady, self._uniform = versions, clock, steady, uniform
        self._models: dict[str, Asked] = {}
        self._known: dict[str, _Known] = {}
        self._saved = b""
        self._lock = threading.Lock()
        self._looked_at = steady()
        self._skipped = 0
        self.left = 0

    def note(
        self, loaded: LoadedModel, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[WantedName] | None
    ) -> None:
        """A request was answered.

        Args:
            inputs: As the application sent them; ``outputs``: those it wants, None for all.
        """
        now_s = self._steady()
        rate = (self._skipped + 1) / max(now_s - self._looked_at, 1e-6)
        self._looked_at = now_s
        self.left = self._skipped = int(min(rate * _LOOK_S, _MOST_SKIPPED) * 2 * self._uniform())
        with self._lock:
            known = self._known.get(loaded.name)
            if known is None or known.signature is not loaded.signature:
                known = self._adopt(loaded)
            window = known.asked.now
            for name, array in inputs.items():
                axes, shape = window.axes.get(name), array.shape
                if axes is None or len(axes) != len(shape):
                    window.axes[name] = tuple((length, length) for length in shape)
                elif any(not low <= length <= high for (low, high), length in zip(axes, shape, strict=True)):
                    pairs = zip(axes, shape, strict=True)
                    window.axes[name] = tuple((min(low, length), max(high, length)) for (low, high), length in pairs)
            if outputs is None:
                window.all_outputs = True
            else:
                window.outputs.update([output.name for output in outputs])

    def of(self, model: str) -> Asked | None:
        """What was asked of a model lately; None where nobody has. A copy."""
        with self._lock:
            self._take_versions()
            found = self._models.get(model)
            return None if found is None else msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Asked)

    def refusals(self, model: str, signature: Signature) -> list[str]:
        """What of all that applications send a model its new signature would refuse; see :func:`still_fits`.

        What else they would notice is written to the log.
        """
        asked = self.of(model)
        warning = pinned(asked)
        if warning:
            log.warning("model %s: %s", model, warning)
        return still_fits(signature, asked)

    def save(self, path: Path) -> bool:
        """Write it down where it has changed since the last time; whether it had.

        Raises:
            OSError: The disk refuses; the next call tries again.
        """
        with self._lock:
            self._take_versions()
            self._turn(int(self._clock() * 1000))
            data = msgspec.json.encode(_File(models=self._models), order="deterministic")
        if data == self._saved:
            return False
        write_durably(path, data)
        self._saved = data
        return True

    def restore(self, path: Path) -> None:
        """Go on from what was written down; a file that is not there, or damaged, is none."""
        try:
            data = path.read_bytes()
            models = msgspec.json.decode(data, type=_File).models
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("%s: %s; what applications send is learned anew", path, error)
            return
        with self._lock:
            self._models = {**models, **self._models}
            self._saved = data

    def _adopt(self, loaded: LoadedModel) -> _Known:
        """Another version answers, or the same one again: what was sent to another form of inputs is of no account."""
        takes = {spec.name: spec.datatype for spec in loaded.signature.inputs}
        found = self._models.pop(loaded.name, None)
        if found is None or found.takes != takes:
            found = Asked(takes=takes, since_ms=int(self._clock() * 1000))
        found.version = loaded.version
        found.gives = {spec.name: spec.datatype for spec in loaded.signature.outputs}
        self._models[loaded.name] = found
        while len(self._models) > _MOST_MODELS:
            oldest = next(iter(self._models))
            del self._models[oldest]
            self._known.pop(oldest, None)
        known = self._known[loaded.name] = _Known(loaded.signature, found)
        return known

    def _take_versions(self) -> None:
        for model, version in self._versions():
            found = self._models.get(model)
            if found is not None and len(found.now.versions) < MOST_VERSIONS:
                found.now.versions.add(version)

    def _turn(self, now_ms: int) -> None:
        """Begin new windows where the old ones are over; a clock that was set back begins them anew."""
        for asked in self._models.values():
            if not asked.since_ms <= now_ms:
                asked.since_ms = now_ms
            elif now_ms - asked.since_ms >= _WINDOW_MS:
                is_silent = now_ms - asked.since_ms >= 2 * _WINDOW_MS  # the agent was off: nobody was asked
                asked.before, asked.now = (asked.before if is_silent else asked.now), Window()
                asked.since_ms = now_ms
