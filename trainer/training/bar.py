"""How far a run is, for a person at a terminal: one bar, and the newest metrics beside it; else lines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_SHOWN = ("train_loss", "val_loss", "rows_per_s")
_NO_METRICS: Mapping[str, float] = {}


class Shown(Protocol):
    """Is told how far a run is."""

    def __call__(
        self, stage: str, fraction: float, message: str, metrics: Mapping[str, float] = _NO_METRICS, /
    ) -> None:
        """Stage, share of the run done in 0..1, in words, and the newest numbers by name."""


@contextlib.contextmanager
def showing(console: Console) -> Iterator[Shown]:
    """Show a run on a console while the block runs.

    Args:
        console: On standard error, so that a command's result stands alone on standard output.
    """
    if not console.is_terminal:
        yield lambda stage, fraction, message, _metrics=_NO_METRICS: console.print(
            f"{fraction:4.0%} {stage:<9} {message}", highlight=False, markup=False, soft_wrap=True
        )
        return
    columns = (
        TextColumn("{task.fields[stage]:<9}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[numbers]}", style="dim", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=1.0, stage="", numbers="")
        last = ""

        def show(stage: str, fraction: float, message: str, metrics: Mapping[str, float] = _NO_METRICS, /) -> None:
            nonlocal last
            if last and stage != last:
                progress.console.print(f"{last}: done", style="dim", highlight=False)
            last = stage
            numbers = " ".join(f"{name} {metrics[name]:.4g}" for name in _SHOWN if name in metrics)
            progress.update(task, completed=fraction, description=message, stage=stage, numbers=numbers)

        yield show
