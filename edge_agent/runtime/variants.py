"""Which form of a package serves on the processors: full precision, or the int8 form that it was released with.

A trainer keeps an int8 form only where it was faster there and lost nothing to speak of. Another processor may lack the
instructions that made it faster, or round otherwise: so each device tests and times both once, and takes the faster.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Literal

import msgspec

from edge_agent.contract.errors import ModelUnavailable
from edge_agent.contract.manifest import FULL_PRECISION, INT8, golden_file
from edge_agent.runtime.choice import CPU, WORTH_IT
from edge_agent.runtime.guard import RunGuard
from edge_agent.runtime.loaded import LoadedModel
from edge_agent.runtime.package import Package
from edge_agent.runtime.selftest import prove

Precision = Literal["auto", "fp32", "int8"]

_log = logging.getLogger(__name__)


class Variants:
    """Chooses once per package and process; what wakes later is loaded in the chosen form alone.

    Args:
        precision: ``auto`` takes the faster of the two; ``fp32`` or ``int8`` that one, where the package has it and it
            passes its self-test.
        guard: Breaks off what hangs.
    """

    def __init__(self, precision: Precision = "auto", *, guard: RunGuard | None = None) -> None:
        self._precision, self._guard = precision, guard or RunGuard()
        self._chosen: dict[str, tuple[str, str]] = {}

    def load(self, package: Package, load_as: Callable[[str], LoadedModel]) -> LoadedModel:
        """The package in its best form here, loaded and warmed up.

        Args:
            load_as: Loads the package as the variant of that name.
        Raises:
            PackageError, ModelUnavailable: As ``load_as`` in full precision: an int8 form that fails is just not used.
        """
        if self._precision == FULL_PRECISION or not has_int8(package):
            return load_as(FULL_PRECISION)
        if package.digest not in self._chosen:
            return self._choose(package, load_as)
        variant, reason = self._chosen[package.digest]
        return _told(load_as(variant), reason)

    def _choose(self, package: Package, load_as: Callable[[str], LoadedModel]) -> LoadedModel:
        full = load_as(FULL_PRECISION)
        small: LoadedModel | None = None
        try:
            small = load_as(INT8)
            prove(small, guard=self._guard)
        except ModelUnavailable:  # the agent stops
            for each in (full, small):
                if each is not None:
                    each.close()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the form in full precision serves
            _log.warning(
                "model %s %s: its int8 form is not used: %s", package.manifest.name, package.manifest.version, error
            )
            if small is not None:
                small.close()
            return self._keep(full, None, f"int8 is not used: {error}")
        figures = f"{_ms(small.run_us)} a row as int8, {_ms(full.run_us)} as fp32"
        if self._precision == INT8:
            return self._keep(small, full, f"{figures}; runtime.precision asks for int8")
        if small.run_us * WORTH_IT < full.run_us:
            return self._keep(small, full, figures)
        return self._keep(full, small, f"int8 is not faster here: {figures}")

    def _keep(self, best: LoadedModel, other: LoadedModel | None, reason: str) -> LoadedModel:
        if other is not None:
            other.close()
        self._chosen[best.digest] = best.variant, reason
        return _told(best, reason)


def has_int8(package: Package) -> bool:
    """Whether a package was released with an int8 form that may serve in place of full precision."""
    return INT8 in package.manifest.variants and golden_file(INT8) in package.manifest.files


def _told(loaded: LoadedModel, reason: str) -> LoadedModel:
    if loaded.runtime.name == CPU:
        loaded.runtime = msgspec.structs.replace(loaded.runtime, reason=reason)
    return loaded


def _ms(us: float) -> str:
    return f"{us / 1000:.3g} ms" if math.isfinite(us) else "no answer"
