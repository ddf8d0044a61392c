"""``runtimes.json``: on which runtime each model was found to run best here, so that a start need not measure.

It is a memory, not a journal: where it is lost, the models run on ONNX Runtime until they have been measured again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from edge_agent.durable import write_durably
from edge_agent.runtime.choice import CPU, Candidate

RUNTIMES_FILE = "runtimes.json"
# An engine that has ended the process while it was loaded, or failed while it served, has one more chance: once may be
# the power plug.
MAX_TROUBLES = 2

_log = logging.getLogger(__name__)


class Remembered(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was found out about one package on one machine.

    Args:
        machine: What the finding holds for: see :meth:`edge_agent.runtime.accelerator.Accelerator.machine`.
        runtime, precision: What was chosen.
        engine: Key of its engine in the cache, chosen or not: it may be refitted. Empty where there is none.
        deviation: How far that engine's answers are from the golden ones, as a share of the tolerance.
        reason: Why, with the figures.
        troubles: Times that it failed while it served, or that the process ended while it was loaded: counted before
            each load, and taken back after it.
        untested: Nothing was found out: the process ended while this was loaded for its first test.
    """

    machine: str
    runtime: str
    precision: str = "fp32"
    engine: str = ""
    deviation: float = 0.0
    reason: str = ""
    troubles: int = 0
    untested: bool = False

    @property
    def candidate(self) -> Candidate:
        """Runtime and precision."""
        return Candidate(self.runtime, self.precision)

    @property
    def is_usable(self) -> bool:
        """Whether it says to load the model on something else than ONNX Runtime on the CPU."""
        return self.runtime != CPU and self.troubles < MAX_TROUBLES

    @property
    def why_on_cpu(self) -> str:
        """Why the model is on the CPU, where it is for good."""
        if self.runtime == CPU:
            return self.reason
        return (
            f"{self.candidate} has failed here {self.troubles} times and is not used any more; remove {RUNTIMES_FILE} "
            "from the state folder to have it tried again"
        )


class _Runtimes(msgspec.Struct, kw_only=True):
    format: int = 1
    packages: dict[str, Remembered] = {}


class RuntimesFile:
    """The file, read once and kept in memory; safe from any thread.

    A file that cannot be read counts as empty, with a line in the log; what cannot be written is remembered until the
    process ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._packages = _read(path)

    def get(self, package: str, machine: str) -> Remembered | None:
        """What is known of a package (by digest) on this very machine."""
        found = self._packages.get(package)
        return found if found is not None and found.machine == machine else None

    def of(self, package: str) -> Remembered | None:
        """What is known of a package, if perhaps of another machine than this one is now."""
        return self._packages.get(package)

    def engines(self) -> set[str]:
        """Keys of the engines that are remembered."""
        return {each.engine for each in self._packages.values() if each.engine}

    def deviation(self, engine: str) -> float:
        """How far an engine's answers are from its own golden ones; 0 where it is not remembered."""
        return max((each.deviation for each in self._packages.values() if each.engine == engine), default=0.0)

    def put(self, package: str, remembered: Remembered) -> None:
        """Remember this of a package from now on."""
        with self._lock:
            if self._packages.get(package) != remembered:
                self._write({**self._packages, package: remembered})

    def count_trouble(self, package: str, change: int) -> None:
        """Note down that a package's runtime is in trouble (+1), or was not after all (-1)."""
        with self._lock:
            found = self._packages.get(package)
            if found is not None:
                counted = msgspec.structs.replace(found, troubles=max(0, found.troubles + change))
                self._write({**self._packages, package: counted})

    @contextlib.contextmanager
    def trying(self, package: str, machine: str, candidate: Candidate, engine: str) -> Iterator[None]:
        """For the length of a ``with`` block a runtime is loaded for its first test, which may end this process.

        Where it does, the next start finds that noted as a trouble: what crashes each time is not tried for ever.
        """
        before, known = self.of(package), self.get(package, machine)
        troubles = known.troubles if known is not None else 0
        tried = Remembered(
            machine=machine,
            runtime=candidate.runtime,
            precision=candidate.precision,
            engine=engine,
            troubles=troubles + 1,
            untested=True,
        )
        self.put(package, tried)
        try:
            yield
        finally:
            if before is None or before.untested:
                self.drop(package)
            else:
                self.put(package, before)

    def drop(self, package: str) -> None:
        """Forget what is known of a package."""
        with self._lock:
            if package in self._packages:
                self._write({digest: each for digest, each in self._packages.items() if digest != package})

    def collect(self, packages: Iterable[str]) -> None:
        """Forget all packages but these."""
        keep = set(packages)
        with self._lock:
            if not self._packages.keys() <= keep:
                self._write({digest: each for digest, each in self._packages.items() if digest in keep})

    def _write(self, packages: Mapping[str, Remembered]) -> None:
        self._packages = dict(packages)
        data = msgspec.json.format(msgspec.json.encode(_Runtimes(packages=self._packages)), indent=1)
        try:
            write_durably(self._path, data, mode=0o600)
        except OSError as error:
            _log.warning(
                "%s could not be written: %s; after the next start models are measured anew", self._path, error.strerror
            )


def _read(path: Path) -> dict[str, Remembered]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Runtimes).packages
    except FileNotFoundError:
        return {}
    except OSError as error:
        _log.warning("%s cannot be read: %s; models are measured anew", path, error.strerror)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _log.warning("%s is damaged, and is written anew once models have been measured: %s", path, error)
    return {}
