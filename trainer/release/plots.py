"""The card's plots, as SVG: equal numbers give equal bytes.

Colours and marks are told apart without colour vision too; text stays text, so that the files are small and searchable.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.gates.comparison import Comparison
from trainer.gates.statistics import CALIBRATION_BINS, calibration_error, wilson_interval

# In tags alone: what is between them is read.
_TAG, _MANY_DIGITS = re.compile(rb"<[^>]*>"), re.compile(rb"(\d\.\d)\d+")
_METADATA = re.compile(rb" <metadata>.*?</metadata>\n", re.DOTALL)
# Groups are numbered for people who edit them; only the marks' ids, which are no numbers, are referred to.
_NUMBERED = re.compile(rb' id="\w+_\d+"')
_BREAKS = re.compile(rb"\s*\n\s*")
_INK, _OURS, _THEIRS, _FAINT = "#333333", "#0b61a4", "#c25a00", "#bbbbbb"
# More would not be read; those with the fewest rows are left out, and the plot says so.
_MOST_SLICES = 40
_MOST_CLASSES_WITH_NUMBERS = 20


def reliability(confidence: NDArray[Any], correct: NDArray[np.bool_]) -> bytes:
    """How often the model is right where it is so sure: a well calibrated one lies on the diagonal.

    Args:
        confidence: Largest probability of each row, float[N] in 0..1; ``correct``: whether it was right, bool[N].
    """
    figure = _figure(4.2, 4.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    at = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    upper.plot([0, 1], [0, 1], color=_FAINT, linestyle="--", linewidth=1)
    for index in range(CALIBRATION_BINS):
        own = at == index
        if not own.any():
            continue
        rows, share = int(own.sum()), float(correct[own].mean())
        low, high = wilson_interval(share, rows, confidence=0.9)
        sure = float(confidence[own].mean())
        upper.errorbar(
            [sure], [share], [[max(0.0, share - low)], [max(0.0, high - share)]], color=_OURS, marker="o", markersize=4
        )
    error = calibration_error(confidence, correct)
    upper.set(ylabel="right", ylim=(0, 1.03), title=f"Calibration: {len(correct)} held-out rows, error {error:.3f}")
    lower.hist(confidence, bins=np.linspace(0, 1, CALIBRATION_BINS + 1), color=_OURS, edgecolor="white")
    lower.set(xlabel="confidence", ylabel="rows", xlim=(0, 1.01))
    return _svg(figure)


def confusion(targets: NDArray[np.int64], answers: NDArray[np.int64], labels: Sequence[str]) -> bytes:
    """What each class is taken for: rows are the truth, columns the answers, shades the share of the row.

    Args:
        targets, answers: Class indices, int64[N].
    """
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    classes = len(labels)
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (targets, answers), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.36 * classes + 1.6, 3.2, 9.0))
    figure = _figure(side, side)
    axes = figure.subplots()
    shades = colormaps["Blues"]
    for row, column in zip(*np.nonzero(counts), strict=True):  # most pairs of classes are never confused
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=shades(shares[row, column])))
    axes.set(xlim=(0, classes), ylim=(classes, 0))
    if classes <= _MOST_CLASSES_WITH_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            ink = "white" if shares[row, column] > 0.5 else _INK
            axes.text(
                column + 0.5, row + 0.5, str(counts[row, column]), ha="center", va="center", color=ink, fontsize=7
            )
    ticks = np.arange(classes) + 0.5
    turn = 90 if max(len(label) for label in labels) > 3 else 0
    axes.set_xticks(ticks, labels, rotation=turn)
    axes.set_yticks(ticks, labels)
    axes.set(xlabel="answer", ylabel="truth", title=f"Confusion: {len(targets)} held-out rows", aspect="equal")
    return _svg(figure)


def slices(parts: Mapping[str, Comparison]) -> bytes:
    """Accuracy by slice with its interval, beside the champion's.

    Args:
        parts: By name, in the order to show.
    """
    shown = sorted(parts, key=lambda name: -parts[name].rows)[:_MOST_SLICES]
    names = [name for name in parts if name in shown]
    left_out = len(parts) - len(names)
    figure = _figure(6.0, 0.24 * len(names) + 1.3)
    axes = figure.subplots()
    for at, name in enumerate(names):
        part = parts[name]
        low, high = part.sure or (part.challenger, part.challenger)
        axes.plot([low, high], [at, at], color=_OURS, linewidth=1.5, solid_capstyle="butt")
        ours = "this model" if not at else None
        axes.plot([part.challenger], [at], color=_OURS, marker="o", markersize=4, linestyle="none", label=ours)
        if part.champion is not None:
            label = "champion" if not at else None
            axes.plot([part.champion], [at], color=_THEIRS, marker="x", markersize=5, linestyle="none", label=label)
    axes.set_yticks(range(len(names)), [f"{name} ({parts[name].rows})" for name in names])
    axes.invert_yaxis()
    title = "Accuracy by slice" + (f" ({left_out} smaller ones left out)" if left_out else "")
    axes.set(xlabel="right", title=title)
    axes.grid(axis="x", color=_FAINT, linewidth=0.4)
    figure.legend(loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    return _svg(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any) -> bytes:
    """A figure's bytes, without the date, the tool's version and the random ids that it would hold."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.BytesIO()
    settings: Any = {
        "svg.hashsalt": "shoal",
        "svg.fonttype": "none",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 8,
    }
    with rc_context(settings):
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(out, metadata={"Date": None, "Creator": None})
    drawn = _BREAKS.sub(b" ", _METADATA.sub(b"", out.getvalue()))
    # Devices download it with the model: a tenth of a point is finer than any screen.
    return _TAG.sub(lambda tag: _MANY_DIGITS.sub(rb"\1", _NUMBERED.sub(b"", tag[0])), drawn)
