"""Slots: which model serves under which name, and how one replaces another without a request noticing.

A slot is one reference. A request leases the model that it finds there and keeps it to the end; the replaced model is
closed when the last lease on it ends.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import ModelLoadFailed, UnknownModel
from edge_agent.contract.manifest import Manifest
from edge_agent.contract.profile import ReferenceProfile, count_batch
from edge_agent.contract.signature import Signature
from edge_agent.runtime.backend import InferenceBackend
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Golden, Package
from edge_agent.runtime.statistics import Statistics

# Slower models go to a thread: a hand-over costs about 50 us, a blocked loop delays every other request.
INLINE_LIMIT_US = 1000.0


@dataclasses.dataclass(eq=False)
class LoadedModel:
    """A package with its session, ready to answer.

    Args:
        inline: Whether an inference is short enough to run on the event loop's own thread.
        requests: Requests since it was loaded, the failed ones included; what a rollout's health gate looks at.
        failed: Those of them that failed though they were right.
    """

    package: Package
    backend: InferenceBackend
    inline: bool = True
    requests: int = 0
    failed: int = 0
    statistics: Statistics = dataclasses.field(default_factory=Statistics, repr=False)
    _leases: int = 0
    _retired: bool = False
    _counting: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    @property
    def manifest(self) -> Manifest:
        """The package's manifest."""
        return self.package.manifest

    @property
    def name(self) -> str:
        """The model's name."""
        return self.package.manifest.name

    @property
    def version(self) -> str:
        """The model's version."""
        return self.package.manifest.version

    @property
    def digest(self) -> str:
        """The package digest."""
        return self.package.digest

    @property
    def signature(self) -> Signature:
        """Inputs and outputs."""
        return self.package.manifest.signature

    @functools.cached_property
    def reference(self) -> ReferenceProfile:
        """The package's reference profile, read once."""
        return self.package.reference()

    @functools.cached_property
    def check(self) -> InputCheck:
        """The check of requests against the signature."""
        return InputCheck(self.signature)

    def count(self, *, failed: bool = False) -> None:
        """Count one request, from any thread."""
        with self._counting:
            self.requests += 1
            self.failed += failed


def load(package: Package, *, variant: str = "fp32", threads: int = 1) -> LoadedModel:
    """Load a package, read its profile, and measure on its first golden row whether it may run inline.

    Raises:
        PackageError: The package lacks a part or, as ModelLoadFailed, the runtime refuses the model.
    """
    backend = OnnxBackend(package, variant=variant, threads=threads)
    loaded = LoadedModel(package=package, backend=backend)
    golden = package.golden()
    # A profile that does not fit its own model is refused now, not when the first rows are counted.
    count_batch(loaded.reference.features, _numbers(golden.inputs), _numbers(golden.outputs))
    loaded.inline = _median_us(loaded, golden) < INLINE_LIMIT_US
    return loaded


class Slots:
    """The models that serve, by name. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._models: dict[str, LoadedModel] = {}
        self._lock = threading.Lock()

    def get(self, model: str, version: str | None = None) -> LoadedModel:
        """The model that serves under this name; it may be replaced any time: to run it, take a lease.

        Raises:
            UnknownModel: There is none, or it has another version.
        """
        loaded = self._models.get(model)
        if loaded is None:
            known = ", ".join(sorted(self._models)) or "none yet"
            raise UnknownModel(f"model '{model}' is not served here; served are: {known}")
        if version is not None and version != loaded.version:
            raise UnknownModel(f"model '{model}' has no version '{version}' here; it is at version '{loaded.version}'")
        return loaded

    def lease(self, model: str, version: str | None = None) -> Lease:
        """Hold the model for the length of a ``with`` block: it is not closed before.

        Raises:
            UnknownModel: See :meth:`get`.
        """
        with self._lock:
            loaded = self.get(model, version)
            loaded._leases += 1  # noqa: SLF001 - slots are what counts leases
        return Lease(self, loaded)

    def install(self, loaded: LoadedModel) -> LoadedModel | None:
        """Let ``loaded`` serve under its name from now on; atomic.

        Returns:
            The model that it replaces, if any: closed when its last request ends, so load it again to go back.
        Raises:
            ModelLoadFailed: It was replaced before, and so closed.
        """
        with self._lock:
            if loaded._retired:  # noqa: SLF001
                raise ModelLoadFailed(f"model '{loaded.name}' {loaded.version} is closed: load its package again")
            old = self._models.get(loaded.name)
            self._models = {**self._models, loaded.name: loaded}
        if old is not None and old is not loaded:
            self._retire(old)
            return old
        return None

    def remove(self, model: str) -> None:
        """Serve no model under this name any more; it is closed when its last request ends.

        Raises:
            UnknownModel: There is none.
        """
        with self._lock:
            old = self.get(model)
            self._models = {name: loaded for name, loaded in self._models.items() if name != model}
        self._retire(old)

    def models(self) -> list[LoadedModel]:
        """The models that serve, by name."""
        return [loaded for _, loaded in sorted(self._models.items())]

    def close(self) -> None:
        """Remove all models."""
        for loaded in self.models():
            self.remove(loaded.name)

    def _retire(self, old: LoadedModel) -> None:
        with self._lock:
            old._retired = True  # noqa: SLF001
            idle = old._leases == 0  # noqa: SLF001
        if idle:
            old.backend.close()

    def _release(self, loaded: LoadedModel) -> None:
        with self._lock:
            loaded._leases -= 1  # noqa: SLF001
            last = loaded._retired and loaded._leases == 0  # noqa: SLF001
        if last:
            loaded.backend.close()


class Lease:
    """A model held for one request; made by :meth:`Slots.lease`, used once."""

    __slots__ = ("_loaded", "_slots")

    def __init__(self, slots: Slots, loaded: LoadedModel) -> None:
        self._slots, self._loaded = slots, loaded

    def __enter__(self) -> LoadedModel:
        return self._loaded

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slots._release(self._loaded)  # noqa: SLF001 - the other half of lease()


def _numbers(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in tensors.items() if array.dtype.kind != "O"}


def _median_us(loaded: LoadedModel, golden: Golden, *, runs: int = 15, budget_s: float = 0.5) -> float:
    """Median time of one inference of one row, after one to warm up."""
    row = {name: array[:1] for name, array in golden.inputs.items()}
    times: list[float] = []
    until = time.monotonic() + budget_s
    for _ in range(runs + 1):
        begin = time.perf_counter()
        try:
            loaded.backend.infer(row)
        except Exception:  # noqa: BLE001 - the self-test says what is wrong; until then it is just not fast
            return float("inf")
        times.append((time.perf_counter() - begin) * 1e6)
        if time.monotonic() > until:
            break
    measured = sorted(times[1:] or times)
    return measured[len(measured) // 2]
