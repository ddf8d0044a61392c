"""``python -m benchmarks.serving``: see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.serving.environments import NotInstalled
from benchmarks.serving.hot_swaps import measure_hot_swaps
from benchmarks.serving.models import Model, make_models
from benchmarks.serving.overheads import measure_overheads
from benchmarks.serving.peer import Peer
from benchmarks.serving.peers import all_peers
from benchmarks.serving.processes import ServerEnded, on_core
from benchmarks.serving.raw import RawRuns
from benchmarks.serving.rows import Pace, Row, raw_row, server_rows
from benchmarks.serving.table import line, print_table, print_verdicts, write_json
from benchmarks.serving.verdicts import SHOAL, judge

_BUILD = Path("build/bench")
_FAILURES = (ServerEnded, OSError, ValueError)


def main() -> None:
    options = _options()
    server_core, load_core = _cores()
    rows: list[Row] = []
    missing: list[tuple[str, str]] = []
    peers = [peer for peer in all_peers() if _wanted(peer.target, options.only)]
    pythons = _installed(peers, missing, install=not options.no_install)
    pace = Pace.quick() if options.quick else Pace()
    more: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-models-") as folder, on_core(load_core):
        models = make_models(Path(folder))
        for name, model in models.items():
            if not _wanted(name, options.models):
                continue
            with RawRuns(model, server_core) as raw:
                rows.append(raw_row(model, raw, pace))
                for peer in peers:
                    if peer.target not in pythons:
                        continue
                    try:
                        found = list(
                            server_rows(peer, model, raw, python=pythons[peer.target], core=server_core, pace=pace)
                        )
                    except _FAILURES as error:
                        missing.append((peer.target, f"{name}: {error}"))
                        continue
                    rows += found
                    for row in found:
                        print(line(row), file=sys.stderr, flush=True)
        if not options.no_extras and _wanted(SHOAL, options.only):
            more = _extras(models["tiny"], server_core, missing, quick=options.quick)
    verdicts = judge(rows, more)
    print_table(rows, missing)
    for what, figure in more.items():
        print(f"{what:<50}{figure:>10.1f}")
    print_verdicts(rows, verdicts)
    write_json(_BUILD / "serving.json", rows, verdicts)


def _extras(tiny: Model, core: int, missing: list[tuple[str, str]], *, quick: bool) -> dict[str, float]:
    """What is measured of Shoal alone: the price of checks and monitoring, and hot swaps under load."""
    found: dict[str, float] = {}
    try:
        found |= measure_overheads(tiny, core, starts=1 if quick else 7, turns=5 if quick else 12, seconds=0.15)
    except _FAILURES as error:
        missing.append((SHOAL, f"checks and monitoring: {error}"))
    try:
        swaps = measure_hot_swaps(core, swaps=50 if quick else 1000)
    except _FAILURES as error:
        missing.append((SHOAL, f"hot swaps: {error}"))
        return found
    missing += [(SHOAL, f"failed during hot swaps: {text}") for text in swaps.errors]
    return found | {
        "swaps": swaps.swaps,
        "swap_requests": swaps.requests,
        "swap_failed": swaps.failed,
        "swap_early_mb": swaps.early_mb,
        "swap_late_mb": swaps.late_mb,
        "swap_growth_percent": swaps.growth_percent,
    }


def _installed(peers: list[Peer], missing: list[tuple[str, str]], *, install: bool) -> dict[str, str]:
    """The interpreter of each server; who cannot be installed is missing, with the reason."""
    pythons: dict[str, str] = {}
    for peer in peers:
        try:
            environment = peer.environment
            pythons[peer.target] = (
                sys.executable
                if environment is None
                else environment.python(_BUILD.resolve() / "peers", install=install)
            )
        except NotInstalled as error:
            missing.append((peer.target, f"not installed: {error}"))
    return pythons


def _cores() -> tuple[int, int]:
    """The servers' core and the load's: the last two that this process may use; the same one where there is one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        print("one core only: servers and load share it, and every figure is worse for it", file=sys.stderr)
    return cores[-1], cores[-2] if len(cores) > 1 else cores[-1]


def _wanted(name: str, only: list[str]) -> bool:
    return not only or any(name.startswith(start) for start in only)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    names = lambda text: [name.strip() for name in text.split(",") if name.strip()]  # noqa: E731
    parser.add_argument("--quick", action="store_true", help="short rounds: to see that all works")
    parser.add_argument("--only", type=names, default=[], help="servers, by how their names begin: shoal,triton")
    parser.add_argument("--models", type=names, default=[], help="models: tiny,cnn,image")
    parser.add_argument("--no-extras", action="store_true", help="leave out the price of checks, and hot swaps")
    parser.add_argument("--no-install", action="store_true", help="measure only what is installed already")
    return parser.parse_args()


if __name__ == "__main__":
    main()
