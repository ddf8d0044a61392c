"""Vibration of rolling bearings, healthy and damaged, from a physical simulation.

Where a ball rolls over a spall it strikes the structure, which rings at its own resonance. How often that happens
follows from the bearing's geometry and the shaft's speed; that it is never quite periodic, from the slip of the balls.
The model is that of R. B. Randall and J. Antoni, "Rolling element bearing diagnostics: a tutorial", Mechanical Systems
and Signal Processing 25 (2011) 485-520: defect frequencies (section 2), slip as a random walk of the intervals (3.2),
load zone and transfer path (McFadden and Smith, Journal of Sound and Vibration 96 (1984) 69-82).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal

RATE_HZ = 12_000
WINDOW = 4_096
CLASSES = ("healthy", "outer", "inner", "ball")
# A fault that the model is never shown: a bearing that runs dry. Only the anomaly score can tell it.
UNKNOWN = "dry"
_BEARINGS = 44
_WINDOWS = 7
_SEED = 20_250_301
# Balls slip: the interval between two strikes varies by about a percent.
_SLIP = 0.012


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A rolling bearing whose inner ring turns with the shaft; the defaults are those of the deep-groove type 6205.

    Args:
        balls: Number of rolling elements.
        ball_mm, pitch_mm: Diameter of a ball, and of the circle on which their centres run.
        contact_deg: Contact angle.
    """

    balls: int = 9
    ball_mm: float = 7.94
    pitch_mm: float = 39.04
    contact_deg: float = 0.0

    @property
    def _ratio(self) -> float:
        return self.ball_mm / self.pitch_mm * math.cos(math.radians(self.contact_deg))

    @property
    def cage(self) -> float:
        """Turns of the cage per turn of the shaft (FTF)."""
        return (1 - self._ratio) / 2

    @property
    def outer(self) -> float:
        """Balls that pass a point of the outer ring, per turn of the shaft (BPFO)."""
        return self.balls * (1 - self._ratio) / 2

    @property
    def inner(self) -> float:
        """Balls that pass a point of the inner ring, per turn of the shaft (BPFI)."""
        return self.balls * (1 + self._ratio) / 2

    @property
    def ball(self) -> float:
        """Strikes of a damaged ball per turn of the shaft: twice its spin (BSF), as it meets both rings."""
        return self.pitch_mm / self.ball_mm * (1 - self._ratio**2)


BEARING = Geometry()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What one bearing is built into, and how worn it is.

    Args:
        resonance_hz, damping: Of the structure that the strikes set ringing.
        noise: Standard deviation of the vibration that is always there, m/s2.
        shaft: Amplitude of the shaft's own harmonics, m/s2.
        severity: Amplitude of a strike, m/s2, at 30 turns per second.
    """

    resonance_hz: float
    damping: float
    noise: float
    shaft: float
    severity: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Machine:
        """One machine of a plant, in which no two are alike."""
        return cls(
            resonance_hz=rng.uniform(2_000, 4_500),
            damping=rng.uniform(0.02, 0.06),
            noise=rng.uniform(0.6, 1.4),
            shaft=rng.uniform(0.3, 2.0),
            severity=rng.lognormal(math.log(7.0), 0.35),
        )

    def vibration(
        self, condition: str, speed_hz: float, rng: np.random.Generator, *, samples: int = WINDOW
    ) -> NDArray[np.float32]:
        """A window of acceleration in m/s2, float32[samples] at ``RATE_HZ``.

        Args:
            condition: One of ``CLASSES``, or ``UNKNOWN``.
            speed_hz: Turns of the shaft per second.
        """
        lead = RATE_HZ // 20  # so that what rings at the window's beginning has begun before
        count = samples + lead
        seconds = np.arange(count) / RATE_HZ
        turns = speed_hz * seconds * (1 + 0.003 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * seconds + rng.uniform(0, 6)))
        found = self._strikes(condition, turns, speed_hz, rng)
        for harmonic, share in ((1, 1.0), (2, 0.4), (3, 0.2)):
            amplitude = self.shaft * share * rng.uniform(0.6, 1.4)
            found += amplitude * np.sin(2 * np.pi * (harmonic * turns + rng.uniform()))
        # What is always there: broadband, and a part of it coloured by the same structure.
        found += self.noise * rng.normal(size=count)
        found += 0.5 * self._ringing(self.noise * rng.normal(size=count)) / 4
        return np.clip(found[lead:], -500, 500).astype(np.float32)

    def _strikes(
        self, condition: str, turns: NDArray[np.float64], speed_hz: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """The ringing that a fault causes; none in a healthy bearing."""
        if condition == "healthy":
            return np.zeros(len(turns))
        if condition == UNKNOWN:  # metal touches metal, at random and all the time
            at = np.sort(rng.uniform(turns[0], turns[-1], size=int(14 * (turns[-1] - turns[0]))))
            force = rng.exponential(0.6, size=len(at))
        else:
            order = {"outer": BEARING.outer, "inner": BEARING.inner, "ball": BEARING.ball}[condition]
            steps = (1 + _SLIP * rng.normal(size=int(order * (turns[-1] - turns[0])) + 2)) / order
            at = turns[0] + (np.cumsum(steps) - rng.uniform() * steps[0])
            force = self._load(condition, at, rng)
        inside = at < turns[-1]
        samples = np.searchsorted(turns, at[inside])
        impulses = np.zeros(len(turns))
        np.add.at(impulses, samples, self.severity * speed_hz / 30 * force[inside])
        return self._ringing(impulses)

    def _load(self, condition: str, at: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """How hard each strike is: faults turn through the zone that bears the load (Stribeck)."""
        turning = {"outer": 0.0, "inner": 1.0, "ball": BEARING.cage}[condition]
        angle = 2 * np.pi * (turning * at + (rng.uniform() if turning else 0.0))
        zone = np.clip(1 - (1 - np.cos(angle)) / (2 * 0.6), 0.0, None) ** 1.5
        return (0.15 + 0.85 * zone) * rng.uniform(0.8, 1.2, size=len(at))

    def _ringing(self, force: NDArray[np.float64]) -> NDArray[np.float64]:
        """A force seen through the structure: one damped resonance, peak 1 for an impulse of 1."""
        omega = 2 * np.pi * self.resonance_hz / RATE_HZ
        radius = math.exp(-self.damping * omega)
        damped = omega * math.sqrt(1 - self.damping**2)
        rung = signal.lfilter([math.sin(damped)], [1.0, -2 * radius * math.cos(damped), radius**2], force)
        return np.asarray(rung)


def windows(
    condition: str, *, bearings: int, each: int, seed: int, samples: int = WINDOW
) -> tuple[list[str], dict[str, NDArray[np.float32]]]:
    """Windows of some bearings in one condition, each bearing at several speeds.

    Returns:
        The bearing of each window, and the inputs: ``vibration`` float32[N, samples], ``speed`` float32[N].
    """
    rng = np.random.default_rng((seed, *condition.encode()))
    groups, found, speeds = [], [], []
    for number in range(bearings):
        machine = Machine.drawn(rng)
        for _ in range(each):
            speed = rng.uniform(20, 45)
            groups.append(f"bearing-{condition}-{number}")
            found.append(machine.vibration(condition, speed, rng, samples=samples))
            # A tachometer is right within a few parts in a thousand.
            speeds.append(speed * (1 + 0.002 * rng.normal()))
    return groups, {"vibration": np.stack(found), "speed": np.array(speeds, dtype=np.float32)}


def base_rows() -> tuple[list[str], dict[str, NDArray[np.float32]], list[str]]:
    """What the lake is begun with: groups, inputs by name (axis 0 is N) and labels, as the signature has them."""
    parts = [windows(condition, bearings=_BEARINGS, each=_WINDOWS, seed=_SEED) for condition in CLASSES]
    groups = [group for names, _ in parts for group in names]
    labels = [condition for condition, (names, _) in zip(CLASSES, parts, strict=True) for _ in names]
    inputs = {name: np.concatenate([found[name] for _, found in parts]) for name in ("vibration", "speed")}
    return groups, inputs, labels
