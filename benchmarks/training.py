"""What training costs beside a hand-written loop, from disk beside from memory, with two processes beside one.

And how long a group needs that has lost a process. Where other programs keep the processors busy, seconds of the clock
say little: what one process costs is told in seconds of processor time, the clock's ratio beside it.

Ratios within one run are what counts. Writes build/bench/training.json. ``--only loop,disk,processes,killed``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import torch

from trainer.data.row_file import shapes_of
from trainer.data.row_store import write_store
from trainer.data.streaming import MemoryRows, RowSource, StoredRows
from trainer.recipe import Recipe
from trainer.recipe_file import Loggers
from trainer.training.engines.processes import run_local
from trainer.training.job import write_job
from trainer.training.loop import Job, Place, learn
from trainer.training.plan import Compute, Plan
from trainer.training.watch import StallWatch

ROWS = 4096
VALIDATION_ROWS = 512
ROUNDS = 3
EPOCHS = 4
RECOVERY_LIMIT_S = 30.0


# Seconds of the clock, and of the processor.
Spent = tuple[float, float]


class Clock:
    """Seconds of each epoch, from when progress was told."""

    def __init__(self) -> None:
        self.ends: list[Spent] = []
        self.lines: list[tuple[float, str]] = []

    def __call__(self, _fraction: float, message: str, _metrics: Mapping[str, float]) -> None:
        now = time.perf_counter()
        self.lines.append((now, message))
        if "validation loss" in message:
            self.ends.append((now, time.process_time()))

    def epochs_s(self) -> list[Spent]:
        """But for the first, which warms up."""
        return [_since(before, after) for before, after in itertools.pairwise(self.ends)]


def _since(before: Spent, after: Spent) -> Spent:
    return after[0] - before[0], after[1] - before[1]


def digits() -> tuple[Recipe, dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """The recipe that ships, and as many of its pictures as a busy week brings."""
    recipe = Recipe.load(Path("models/digits"))
    base = recipe.module("data").load("base")
    at = np.random.default_rng(0).integers(0, len(base), ROWS + VALIDATION_ROWS)
    return recipe, {"image": base.images[at]}, base.labels[at]


def job(recipe: Recipe, training: RowSource, validation: RowSource, *, epochs: int = EPOCHS) -> Job:
    plan = Plan.make(recipe, content="bench", seed=1, start=None, loggers=Loggers())
    plan = msgspec.structs.replace(plan, epochs=epochs, patience=epochs)
    return Job(plan=plan, recipe=recipe, training=training, validation=validation, start=None)


def ours(task: Job) -> list[Spent]:
    """Epochs of the trainer, in seconds."""
    clock = Clock()
    learn(task, place=Place(), checkpoints=None, progress=clock, watch=StallWatch(600.0))
    return clock.epochs_s()


def by_hand(task: Job) -> list[Spent]:
    """Epochs of the loop that a data scientist would write over the same model and rows, in seconds."""
    torch.manual_seed(1)
    torch.set_num_threads(task.plan.threads)
    # The trainer asks for it, and the process keeps it; who writes a loop of a page does not.
    torch.use_deterministic_algorithms(False)
    network: Any = task.recipe.network(learning_rate=task.plan.learning_rate, epochs=task.plan.epochs)
    found: Any = network.configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]
    best, spent, size = float("inf"), [], task.plan.batch_size
    for epoch in range(task.plan.epochs):
        begin = time.perf_counter(), time.process_time()
        network.train()
        for index, (inputs, targets, weights) in enumerate(task.training.batches(size=size, seed=1, epoch=epoch)):
            batch = {name: torch.from_numpy(array) for name, array in inputs.items()}
            optimizer.zero_grad()
            loss: Any = network.training_step((batch, torch.from_numpy(targets), torch.from_numpy(weights)), index)
            loss.backward()
            optimizer.step()
        schedule.step()
        network.eval()
        total = rows = 0.0
        with torch.no_grad():
            for inputs, targets, weights in task.validation.batches(size=512, seed=None):
                logits: Any = network.logits(torch.from_numpy(inputs["image"]))
                losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets), reduction="none")
                total += float((losses * torch.from_numpy(weights)).sum())
                rows += float(weights.sum())
        if total / rows < best:
            best = total / rows
            _kept = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        spent.append(_since(begin, (time.perf_counter(), time.process_time())))
    return spent[1:]


def alternately(first: Any, second: Any) -> dict[str, float]:
    """Median of an epoch of each, measured in turns, so that a busy moment meets both."""
    taken: tuple[list[Spent], list[Spent]] = [], []
    for _ in range(ROUNDS):
        for into, measure in zip(taken, (first, second), strict=True):
            into.extend(measure())
    wall, cpu = ([statistics.median(each[at] for each in side) for side in taken] for at in (0, 1))
    return {
        "epoch_cpu_s": cpu[0],
        "reference_cpu_s": cpu[1],
        "ratio": cpu[0] / cpu[1],
        "clock_ratio": wall[0] / wall[1],
        "limit": 1.1,
    }


def together(folder: Path, task: Job, processes: int, clock: Clock) -> None:
    write_job(folder, task)
    run_local(folder, task.plan, Compute(processes=processes), clock, restarts=3)


def killed(folder: Path, task: Job) -> dict[str, float]:
    """Seconds from the kill of one process of two to the first batch after the last checkpoint, and where they went."""
    at: list[float] = []

    class Killing(Clock):
        def __call__(self, fraction: float, message: str, metrics: Mapping[str, float]) -> None:
            super().__call__(fraction, message, metrics)
            if len(self.ends) == 2 and not at:
                at.append(time.perf_counter())
                victims = [process for process in psutil.process_iter(["cmdline"]) if _is_rank(process, folder)]
                os.kill(victims[-1].pid, signal.SIGKILL)

    clock = Killing()
    together(folder, task, 2, clock)
    resumed = next(moment for moment, message in clock.lines if message.startswith("going on from checkpoint"))
    learning = next(moment for moment, _ in clock.lines if moment > resumed)
    return {"noticed_and_started_s": resumed - at[0], "learning_again_s": learning - at[0]}


def _is_rank(process: psutil.Process, folder: Path) -> bool:
    line = process.info["cmdline"] or []
    return line[-2:] == ["trainer.training.worker", str(folder)] and "torch.distributed.run" not in line


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="loop,disk,processes,killed")
    only = set(parser.parse_args().only.split(","))
    recipe, inputs, targets = digits()
    keys = [f"r{at}" for at in range(len(targets))]
    memory = MemoryRows({"image": inputs["image"][:ROWS]}, targets[:ROWS], np.ones(ROWS))
    validation = MemoryRows({"image": inputs["image"][ROWS:]}, targets[ROWS:], np.ones(VALIDATION_ROWS))
    task = job(recipe, memory, validation)
    target = Path("build/bench/training.json")
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "loop" in only:
            found["loop"] = alternately(lambda: ours(task), lambda: by_hand(task))
        if "disk" in only:
            store = write_store(
                folder / "store",
                keys[:ROWS],
                targets[:ROWS],
                shapes_of({"image": inputs["image"][:ROWS]}),
                lambda rows: {"image": inputs["image"][rows]},
            )
            stored = job(recipe, StoredRows(store), validation)
            found["disk"] = alternately(lambda: ours(stored), lambda: ours(task))
        if "processes" in only:
            two, one = Clock(), Clock()
            together(folder / "two", task, 2, two)
            together(folder / "one", task, 1, one)
            two_s, one_s = (statistics.median(wall for wall, _ in clock.epochs_s()) for clock in (two, one))
            found["processes"] = {"epoch_s": two_s, "reference_s": one_s, "ratio": two_s / one_s}
        if "killed" in only:
            found["killed"] = killed(folder / "killed", job(recipe, memory, validation, epochs=5))
            found["killed"]["limit_s"] = RECOVERY_LIMIT_S
    found["rows"], found["cpus"] = ROWS, os.cpu_count()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=2) + "\n")
    show(found)


def show(found: dict[str, Any]) -> None:
    print(f"digits CNN, {ROWS} rows an epoch in batches of 64, {os.cpu_count()} CPUs; median epoch in seconds")
    print(f"{'':<44}{'ours':>9}{'reference':>11}{'ratio':>8}{'limit':>8}{'by the clock':>14}")
    titles = {
        "loop": "the trainer beside a hand-written loop, CPU",
        "disk": "rows from disk beside memory, CPU",
        "processes": "two processes beside one, clock",
    }
    for name, title in titles.items():
        if row := found.get(name):
            ours_s, reference_s = (row.get(f"{side}_cpu_s", row.get(f"{side}_s")) for side in ("epoch", "reference"))
            limit = f"{row['limit']:.2f}" if "limit" in row else "-"
            clock = f"{row.get('clock_ratio', row['ratio']):.2f}"
            print(f"{title:<44}{ours_s:>9.3f}{reference_s:>11.3f}{row['ratio']:>8.2f}{limit:>8}{clock:>14}")
    if row := found.get("killed"):
        words = f"started anew after {row['noticed_and_started_s']:.1f} s, learning again after"
        print(f"one process of two killed: {words} {row['learning_again_s']:.1f} s (limit {row['limit_s']:g} s)")


if __name__ == "__main__":
    main()
