"""``shoal demo``: the whole loop on real data, in minutes, on one machine."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.markup import escape

from edge_agent.contract.errors import ShoalError
from trainer.demo import report as reports
from trainer.demo.processes import ENDING
from trainer.plain_errors import plainly


@click.command()
@click.option("--keep", is_flag=True, help="Leave everything running in the end, to explore; Ctrl-C ends it.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="Port of console and REST API; 0 takes a free one.",
)
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("build/demo/report.json"),
    show_default=True,
    help="Where the figures are written.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Keep all state and logs here (must not exist)."
)
@plainly
def demo(*, keep: bool, port: int, report_path: Path, folder: Path | None) -> None:
    """Show a fleet that notices it has become wrong, and mends itself.

    Starts a server and three devices, each fed by a camera through its local API. Then the world changes: accuracy
    falls, drift is seen without labels, a budgeted trickle of labels shows the harm, a better model is trained, signed,
    and rolled out in waves while the devices serve. Exits with 1 if a request failed, anything was lost, or the fleet
    did not recover.
    """
    # A log has no width of its own: wide enough for the table.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    if folder is not None and folder.exists():
        raise click.UsageError(f"{folder} is there already; remove it, or choose another --folder")
    # Before minutes of work: can it be written there? And no earlier verdict may stand for this one.
    report_path.parent.mkdir(parents=True, exist_ok=True)
    report_path.unlink(missing_ok=True)
    place = folder or Path(tempfile.mkdtemp(prefix="shoal-demo-"))
    for number in ENDING:
        signal.signal(number, _end)
    try:
        ok = _play(console, place, keep=keep, port=port, report_path=report_path)
    except ShoalError as error:
        console.print(f"[red]the demo could not go on:[/red] {escape(str(error))}")
        console.print(f"state and logs: {place}", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        _leave(console, place, keep=folder is not None)
        sys.exit(130)
    _leave(console, place, keep=folder is not None or not ok)
    sys.exit(0 if ok else 1)


def _leave(console: Console, place: Path, *, keep: bool) -> None:
    """Remove what was only the demo's, its signing keys with it, unless it is asked for or tells what went wrong."""
    if keep:
        console.print(f"state and logs: {place} (its keys are the demo's alone; remove it at will)", soft_wrap=True)
    else:
        shutil.rmtree(place)


def _play(console: Console, place: Path, *, keep: bool, port: int, report_path: Path) -> bool:
    from trainer.demo.fleet import MODEL, Fleet, Pace
    from trainer.demo.processes import Processes
    from trainer.demo.story import Story
    from trainer.recipe import recipes_folder

    recipes = recipes_folder(None)
    with Processes(place / "logs") as processes:
        fleet = Fleet(processes, place, recipes, Pace())
        report = Story(fleet, recipes / MODEL, console).play(port)
        reports.write(report, report_path)
        console.print(reports.table(report))
        for problem in report.problems:
            console.print(f"[red]not ok:[/red] {escape(problem)}")
        verdict = (
            "[green]The fleet has mended itself[/green]" if report.ok else "[red]The fleet has not mended itself[/red]"
        )
        console.print(
            f"{verdict} in {report.wall_s:.0f} s: {report.requests_failed} requests failed, "
            f"{report.lost} records lost, {report.duplicated} duplicated. Figures: {report_path}"
        )
        if keep:
            console.print(escape(fleet.guide()), soft_wrap=True)
            with contextlib.suppress(KeyboardInterrupt):
                fleet.run_on()
    return report.ok


def _end(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
