"""Which runtime a model runs on: the fastest that was measured here and answers within tolerance. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

# A runtime takes another's place only where it is so much faster: less is the noise of a measurement on a machine that
# serves meanwhile, and each swap costs memory and a warm-up.
WORTH_IT = 1.05

CPU = "onnxruntime-cpu"
CUDA = "onnxruntime-cuda"


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A runtime on which a model could run.

    Args:
        runtime: ``onnxruntime-cpu``, ``onnxruntime-cuda``, ``tensorrt`` or ``tensorrt-rtx``.
        precision: ``fp32``, ``fp16`` or ``int8``.
    """

    runtime: str
    precision: str = "fp32"

    def __str__(self) -> str:
        # That ONNX Runtime computes as the package's weights are, goes without saying.
        return (
            self.runtime
            if self.precision == "fp32" and self.runtime in (CPU, CUDA)
            else (f"{self.runtime} {self.precision}")
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """What a runtime took for a model on this machine.

    Args:
        row_us: Median time of one row, in microseconds.
        batch_rows: Rows of the batch that the model's manifest prefers; 0 where it asks for none.
        batch_us: Median time of such a batch.
    """

    candidate: Candidate
    row_us: float
    batch_rows: int = 0
    batch_us: float = 0.0

    @property
    def cost(self) -> float:
        """What is compared: the geometric mean, so that neither the single row nor the batch counts more."""
        return math.sqrt(self.row_us * self.batch_us) if self.batch_rows else self.row_us


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A runtime that cannot be used for a model, and why."""

    candidate: Candidate
    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """The runtime to use.

    Args:
        reason: Why, in words, with the figures: ``tensorrt fp16: 0.9 ms against 6.1 ms on onnxruntime-cpu``.
    """

    best: Measured
    reason: str


def choose(measured: Sequence[Measured], refused: Sequence[Refused] = (), *, wanted: str = "") -> Choice:
    """The fastest of what was measured.

    Args:
        measured: All within tolerance. The first is what serves now: it stays unless another is clearly faster.
        refused: What could not be measured; said in the reason.
        wanted: A runtime to take even where it is slower, if it was measured: ``tensorrt`` stands for ``tensorrt-rtx``.
    Raises:
        ValueError: Nothing was measured.
    """
    if not measured:
        raise ValueError("nothing was measured: what serves now is always a candidate")
    current, *others = measured
    fastest = min(others, key=lambda each: each.cost, default=current)
    best = fastest if fastest.cost * WORTH_IT < current.cost else current
    asked_for = [each for each in measured if wanted and each.candidate.runtime.startswith(wanted)]
    if asked_for:
        best = min(asked_for, key=lambda each: each.cost)
    rest = sorted((each for each in measured if each is not best), key=lambda each: each.cost)
    parts = [_against(best, rest)] if rest else []
    parts += [f"{each.candidate} is not used: {each.why}" for each in refused]
    return Choice(best, "; ".join(parts))


def _against(best: Measured, rest: Sequence[Measured]) -> str:
    text = f"{best.candidate}: {_ms(best.row_us)} against " + ", ".join(
        f"{_ms(each.row_us)} on {each.candidate}" for each in rest
    )
    if best.batch_rows:
        text += f"; {best.batch_rows} rows: {_ms(best.batch_us)} against " + ", ".join(
            _ms(each.batch_us) for each in rest
        )
    return text


def _ms(us: float) -> str:
    """Microseconds as milliseconds, with two significant digits."""
    if not math.isfinite(us):
        return "no answer"
    ms = us / 1000
    digits = max(0, 1 - math.floor(math.log10(ms))) if ms > 0 else 0
    return f"{ms:.{min(digits, 4)}f} ms"
