"""What a new version costs on the wire: real fine-tunes, sent whole, compressed, as others' deltas, and as Shoal's.

Prints a table and writes build/bench/updates.json. Percentages are of the whole file in the same form.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks import director, update_peers
from benchmarks.update_networks import NETWORKS, Case, cases
from benchmarks.update_peers import Method, Sent
from edge_agent.contract.delta.make import make_delta
from edge_agent.contract.stored_tensors import StoredFile
from trainer.errors import UpdateNotQuantisable
from trainer.gates.update_gate import distance
from trainer.recipe_file import Release
from trainer.release.export import WEIGHTS_FILE
from trainer.release.quantised_update import Difference
from trainer.release.update_search import LADDER

TARGET = Path("build/bench/updates.json")
OURS, QUANTISED = "shoal", "shoal, quantised"
# Others need minutes and gigabytes for files of 100 MB: of large ones they get a part, and the table says so.
_PEERS_BYTES = {"bsdiff4": 2 << 20}
_MOST_PEERS_BYTES = 8 << 20
# What the gate of a release asks unless a recipe says otherwise.
_LIMITS = Release()


@dataclasses.dataclass(frozen=True)
class Row:
    """One method on one file.

    Args:
        make_s: Processor time.
        apply_mb_per_s: Megabytes of the new file per second of one core's time; None where nothing is applied.
        apply_memory_mb: Peak beyond what the process had before; of programs of their own, all of it.
        accuracy: On held-out rows, of what arrives.
        note: What else is to be known.
    """

    network: str
    optimiser: str
    dtype: str
    method: str
    percent_of_full: float
    make_s: float
    apply_mb_per_s: float | None
    apply_memory_mb: float | None
    accuracy: float
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Pair:
    """What one method is given: two files, or a part of each."""

    base: Path
    new: Path
    base_layout: StoredFile
    layout: StoredFile
    note: str = ""


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="of these, separated by commas")
    parser.add_argument("--no-install", action="store_true", help="only peers that are here already")
    parser.add_argument("--no-director", action="store_true", help="leave out how fast metadata is signed")
    options = parser.parse_args()
    peers, missing = update_peers.methods(install=not options.no_install)
    rows: list[Row] = []
    _heading()
    for case in cases(options.networks.split(",")):
        for row in _rows(case, peers):
            rows.append(row)
            _show(row)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    for line in (*missing, *_verdicts(rows)):
        print(line)
    print(f"written: {TARGET}")
    if not options.no_director:
        _director()


def _director() -> None:
    """How fast devices' metadata is signed."""
    with tempfile.TemporaryDirectory() as name:
        found = director.rows(Path(name))
    TARGET.with_name("director.json").write_text(json.dumps(found, indent=1) + "\n")
    for row in found:
        print(f"director: {row['what']:<33}{row['per_second']:>7.0f} devices/s, stock {row['stock_per_second']:.0f}")
    slowest = min(row["per_second"] for row in found)
    print(_verdict("1,000 devices' metadata signed per second", slowest >= 1000, f"{slowest:.0f} a second the slowest"))


def _rows(case: Case, peers: dict[str, Method]) -> Iterator[Row]:
    accuracy = case.accuracy(case.new)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        limits = {method: _PEERS_BYTES.get(method, _MOST_PEERS_BYTES) for method in peers if method != "full"}
        pairs = {limit: _part(case, limit, folder) for limit in {*limits.values()}}
        whole = Pair(case.base, case.new, case.base_layout, case.layout)
        for method, make in peers.items():
            pair = pairs[limits[method]] if method in limits else whole
            yield _row(case, method, make(pair.base, pair.new, folder), of=(pair.new, accuracy), note=pair.note)
        for pair in pairs.values():
            if pair.note:  # others got a part alone: beside them stands what we make of it
                yield _row(case, OURS, _ours(pair, folder), of=(pair.new, accuracy), note=pair.note)
        yield _row(case, OURS, _ours(whole, folder), of=(case.new, accuracy))
        if case.dtype == "fp32":
            yield from _quantised(case, folder)


def _ours(pair: Pair, folder: Path) -> Sent:
    sent = folder / "sent.delta"
    with pair.base.open("rb") as base, pair.new.open("rb") as target, sent.open("wb") as out:
        began = time.process_time()
        make_delta(base, target, out, base_layout=pair.base_layout, layout=pair.layout)
        make_s = time.process_time() - began
    return Sent(sent.stat().st_size, make_s, *update_peers.measured("ours", pair.base, sent, pair.new))


def _quantised(case: Case, folder: Path) -> Iterator[Row]:
    """The coarsest update that loses nothing beyond noise on the held-out rows, and whose answers are near."""
    difference = Difference(case.graph, case.base_graph)
    weights, exact = folder / WEIGHTS_FILE, case.answers(case.new)
    for factor in LADDER:
        try:
            rounded = difference.round_to(weights, factor=factor)
        except UpdateNotQuantisable as error:
            print(f"  {case.network} {case.optimiser}: no quantised update: {error}")
            return
        lost, low, high = case.lost(weights)
        apart = distance(exact, case.answers(weights), probabilities=True)
        if apart <= _LIMITS.update_distance and high >= 0 and lost >= -_LIMITS.update_budget:
            sent = _ours(Pair(case.base, weights, case.base_layout, rounded.layout), folder)
            note = (
                f"step {factor:g} RMS, {rounded.bits:.2f} bits, answers {apart:.4f} apart, accuracy {100 * lost:+.2f} "
                f"points ({100 * low:+.2f} to {100 * high:+.2f})"
            )
            yield _row(case, QUANTISED, sent, of=(weights, case.accuracy(weights)), note=note)
            return
    print(f"  {case.network} {case.optimiser}: no step passed")


def _row(case: Case, method: str, sent: Sent, *, of: tuple[Path, float], note: str = "") -> Row:
    """The row of a method, for the new file and its accuracy."""
    full_bytes, accuracy = of[0].stat().st_size, of[1]
    rate = full_bytes / sent.apply_s / 1e6 if sent.apply_s else None
    memory = round(sent.apply_memory_mb, 1) if sent.apply_memory_mb is not None else None
    return Row(
        case.network, case.optimiser, case.dtype, method, round(100 * sent.size_bytes / full_bytes, 2),
        round(sent.make_s, 3), round(rate, 1) if rate else None, memory, round(accuracy, 4), note,
    )  # fmt: skip


def _part(case: Case, limit: int, folder: Path) -> Pair:
    """Both files; of large ones so many bytes from the middle of their largest tensor."""
    if case.new.stat().st_size <= limit:
        return Pair(case.base, case.new, case.base_layout, case.layout)
    alike = [each for each in case.layout.tensors if each.dtype.value == case.dtype]
    tensor = max(alike or case.layout.tensors, key=lambda each: each.count * each.dtype.size_bytes)
    before = next(each for each in case.base_layout.tensors if each.name == tensor.name)
    length = min(limit, tensor.count * tensor.dtype.size_bytes)
    inside = (tensor.count * tensor.dtype.size_bytes - length) // 2 // tensor.dtype.size_bytes * tensor.dtype.size_bytes
    places = [folder / f"{name}-{limit}" for name in ("base", "new")]
    for place, file, offset in zip(places, (case.base, case.new), (before.offset, tensor.offset), strict=True):
        with file.open("rb") as source:
            source.seek(offset + inside)
            place.write_bytes(source.read(length))
    layout = StoredFile(
        tensors=(msgspec.structs.replace(tensor, offset=0, count=length // tensor.dtype.size_bytes, step=None),)
    )
    return Pair(places[0], places[1], layout, layout, f"{length >> 20} MiB of its largest tensor")


def _heading() -> None:
    print(
        f"{'network':<10}{'optimiser':<17}{'dtype':<6}{'method':<17}{'% of full':>10}{'make s':>9}{'MB/s':>8}"
        f"{'MB':>7}{'accuracy':>10}",
        flush=True,
    )


def _show(row: Row) -> None:
    rate = "" if row.apply_mb_per_s is None else f"{row.apply_mb_per_s:.0f}"
    memory = "" if row.apply_memory_mb is None else f"{row.apply_memory_mb:.0f}"
    print(
        f"{row.network:<10}{row.optimiser:<17}{row.dtype:<6}{row.method:<17}{row.percent_of_full:>10.2f}"
        f"{row.make_s:>9.2f}{rate:>8}{memory:>7}{row.accuracy:>10.3f}  {row.note}",
        flush=True,
    )


def _verdicts(rows: list[Row]) -> Iterator[str]:
    """The goals, each with what was found."""
    by_file: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in rows:
        if row.method != QUANTISED:
            by_file.setdefault((row.network, row.optimiser, row.dtype, row.note), {})[row.method] = row
    beaten = [
        f"{' '.join(file)} by {row.method}"
        for file, found in by_file.items()
        for row in found.values()
        if row.method != OURS and row.percent_of_full <= found[OURS].percent_of_full
    ]
    yield _verdict(
        "the lossless delta is the smallest", not beaten, f"{len(by_file)} files" if not beaten else str(beaten)
    )
    ours = [row for row in rows if row.method in (OURS, QUANTISED)]
    large = [row.apply_mb_per_s or 0.0 for row in ours if row.network != "digits"]
    if large:  # a file of 80 KB is over in a millisecond
        yield _verdict("applied at 100 MB/s at least", min(large) >= 100, f"{min(large):.0f} MB/s the slowest")
    memory = max((row.apply_memory_mb or 0.0 for row in ours), default=0.0)
    yield _verdict("in 16 MB at most", memory <= 16, f"{memory:.1f} MB the most")
    quantised = max((row.percent_of_full for row in ours if row.method == QUANTISED), default=100.0)
    yield _verdict("quantised at most 10 % of the full fp32 file", quantised <= 10, f"{quantised:.2f} % the most")


def _verdict(goal: str, met: bool, found: str) -> str:
    return f"{'met   ' if met else 'MISSED'}  {goal}: {found}"


if __name__ == "__main__":
    main()
