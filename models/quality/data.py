"""An injection-moulding line: what its machines, its barcode readers and its people write down about each part.

It is as such tables are: measurements that are missing, a material whose barcode was not read, days as people write
them, weights from scales that write numbers with a comma. The parts are simulated, from what moulders know of faults: a
cold melt or too little pressure leaves the mould short; a hot one, too much pressure or a worn mould lets it flash;
moist granulate, of materials that drink water, splays. How much of each is enough, only the data say.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

CLASSES = ("good", "short_shot", "flash", "splay")
MACHINES = ("M1", "M2", "M3", "M4", "M5")
_ZONE = ZoneInfo("Europe/Berlin")
_FIRST_DAY = dt.date(2024, 9, 2)
_SEED = 20_250_302
_RUNS, _PARTS = 420, 8


@dataclass(frozen=True, slots=True)
class Material:
    """How a plastic is moulded.

    Args:
        melt, mould: Temperatures that suit it, degrees Celsius.
        thirst: How badly it takes moisture, 0..1.
    """

    melt: float
    mould: float
    thirst: float


MATERIALS = {
    "PP": Material(230.0, 40.0, 0.05),
    "ABS": Material(240.0, 60.0, 0.6),
    "PA6": Material(260.0, 80.0, 1.0),
    "POM": Material(205.0, 90.0, 0.2),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One part as the line's database has it; None is missing."""

    material: str | None
    machine: str
    moulded_at: str
    serviced_on: str | None
    melt_temperature: float
    mould_temperature: float | None
    hold_pressure: float
    injection_time: float
    moisture: float | None
    weight: str | None
    defect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setup:
    """What the parts of a run share: how far the settings are off what suits the material, and what is written down."""

    material: str
    machine: str
    begin: dt.datetime
    worn_days: int
    melt: float
    mould: float
    pressure: float
    moisture: float
    moisture_measured: bool
    service_known: bool


class Line:
    """Makes parts, a production run at a time: one material on one machine on one day.

    Args:
        seed: The same gives the same parts.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def run(self, number: int, parts: int) -> list[Part]:
        """The parts of one production run, all alike but for what varies from shot to shot."""
        rng = self._rng
        begin = dt.datetime.combine(_FIRST_DAY + dt.timedelta(days=number // 3), dt.time(), _ZONE)
        setup = _Setup(
            material=str(rng.choice(list(MATERIALS))),
            machine=str(rng.choice(MACHINES)),
            begin=begin + dt.timedelta(minutes=int(rng.integers(24 * 60 - parts))),
            worn_days=int(rng.integers(0, 120)),
            melt=rng.normal(0, 14),
            mould=rng.normal(0, 9),
            pressure=rng.normal(0, 120),
            moisture=rng.gamma(2.0, 0.05),
            moisture_measured=bool(rng.uniform() > 0.15),
            service_known=bool(rng.uniform() > 0.08),
        )
        return [self._part(setup, setup.begin + dt.timedelta(minutes=shot)) for shot in range(parts)]

    def _part(self, setup: _Setup, moment: dt.datetime) -> Part:
        rng, material = self._rng, MATERIALS[setup.material]
        melt = material.melt + setup.melt + rng.normal(0, 2)
        mould = material.mould + setup.mould + rng.normal(0, 2)
        pressure = float(np.clip(700 + setup.pressure + rng.normal(0, 15), 200, 1_400))
        filling = float(np.clip(1.8 + rng.normal(0, 0.15) - 0.01 * (melt - material.melt), 0.5, 5))
        moisture = setup.moisture * rng.uniform(0.95, 1.05)
        # A machine that was off over the weekend is cold on Monday.
        cold = 4 * (moment.weekday() == 0 and moment.hour < 9)
        heat, push = (melt - material.melt) / 10, (pressure - 700) / 100
        scores = {
            "good": 1.6,
            "short_shot": -0.9 * heat - 1.1 * push - 0.07 * (mould - material.mould) + cold - 1.2,
            "flash": 0.8 * heat
            + 1.1 * push
            + 0.035 * (setup.worn_days - 45)
            + (0.8 if setup.machine == "M3" else 0.0)
            - 1.2,
            "splay": 40 * material.thirst * (moisture - 0.09) - 1.2,
        }
        sharp = np.array(list(scores.values())) * 3.0
        chances = np.exp(sharp - sharp.max())
        defect = str(rng.choice(list(scores), p=chances / chances.sum()))
        grams = 1_234.5 * (1 + {"short_shot": -0.03, "flash": 0.02}.get(defect, 0.0) + rng.normal(0, 0.012))
        serviced = setup.begin.date() - dt.timedelta(days=setup.worn_days)
        return Part(
            material=setup.material if rng.uniform() > 0.03 else None,
            machine=setup.machine,
            moulded_at=moment.isoformat(timespec="seconds"),
            serviced_on=f"{serviced:%d.%m.%Y}" if setup.service_known else None,
            melt_temperature=melt,
            mould_temperature=mould if rng.uniform() > 0.08 else None,
            hold_pressure=pressure,
            injection_time=filling,
            moisture=moisture if setup.moisture_measured else None,
            weight=_comma(grams) if rng.uniform() > 0.05 else None,
            defect=defect,
        )


def parts(runs: int, *, seed: int, each: int = _PARTS) -> tuple[list[str], list[Part]]:
    """Parts of some production runs, and the run that each comes from."""
    line = Line(seed)
    made = [(f"run-{seed}-{number}", line.run(number, each)) for number in range(runs)]
    return [name for name, found in made for _ in found], [part for _, found in made for part in found]


def columns(found: list[Part]) -> dict[str, NDArray[Any]]:
    """Parts as the inputs of the model, by name; axis 0 is N. Missing text is empty, a missing number NaN."""
    text = ("material", "machine", "moulded_at", "serviced_on", "weight")
    numbers = ("melt_temperature", "mould_temperature", "hold_pressure", "injection_time", "moisture")
    inputs: dict[str, NDArray[Any]] = {}
    for name in text:
        inputs[name] = np.array([(getattr(part, name) or "").encode() for part in found], dtype=object)
    for name in numbers:
        values = [getattr(part, name) for part in found]
        inputs[name] = np.array([np.nan if value is None else value for value in values], dtype=np.float32)
    return inputs


def base_rows() -> tuple[list[str], dict[str, NDArray[Any]], list[str]]:
    """What the lake is begun with: groups, inputs by name (axis 0 is N) and labels, as the signature has them."""
    groups, found = parts(_RUNS, seed=_SEED)
    return groups, columns(found), [part.defect for part in found]


def _comma(grams: float) -> str:
    """As the scales write it: ``1.234,5``."""
    return f"{grams:,.1f}".translate(str.maketrans(",.", ".,"))
