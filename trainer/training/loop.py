"""The training itself, as one process of one or more sees it: Lightning's loop around a recipe's network."""

from __future__ import annotations

import datetime as dt
import functools
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.utils.deterministic
from lightning_fabric.plugins import ClusterEnvironment
from numpy.typing import NDArray
from pytorch_lightning.strategies import DDPStrategy

from edge_agent.contract.errors import ShoalError
from trainer.data.streaming import RowSource
from trainer.errors import RecipeError, TrainerError
from trainer.recipe import Recipe
from trainer.training.batches import Augment, Steps, TrainingBatches, ValidationBatches
from trainer.training.callbacks import BestEpoch, Course, Saving, seed_batch
from trainer.training.checkpoints import FINISHED, Checkpoints
from trainer.training.lean import NoProfiler, OneProcess, SeveralProcesses, lighten, moves_batches
from trainer.training.loggers import open_loggers
from trainer.training.plan import Plan, Progress
from trainer.training.rehearsal import blame
from trainer.training.watch import StallWatch

_EVALUATION_ROWS = 512
# Beyond a batch's own limit: whoever hangs says so before those who wait for it lose patience.
_PEER_GRACE_S = 60.0


class PeerLost(Exception):
    """Another process of the group is gone; the group can go on once it is started anew."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which of the processes this is.

    Args:
        rank, world: Number of this process, and how many there are.
        device: Index of its GPU on its machine, where it uses one.
        address, port: Where rank 0 listens.
    """

    rank: int = 0
    world: int = 1
    device: int = 0
    address: str = "127.0.0.1"
    port: int = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be learnt, from what.

    Args:
        start: Weights to begin with, by name.
    """

    plan: Plan
    recipe: Recipe
    training: RowSource
    validation: RowSource
    start: Mapping[str, NDArray[Any]] | None


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a training came to.

    Args:
        weights: Of the best epoch, by name.
        epochs: Epochs run.
        loss: Validation loss of the best epoch.
    """

    weights: dict[str, torch.Tensor]
    epochs: int
    loss: float

    @classmethod
    def of(cls, state: Mapping[str, Any] | None) -> Learned:
        """From a checkpoint.

        Raises:
            TrainerError: There is none: the processes ended and left nothing.
        """
        if state is None:
            raise TrainerError("training ended and left no weights: its last checkpoint is missing or damaged")
        return cls(weights=state["weights"], epochs=state["epochs"], loss=state["loss"])

    def state(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return {"weights": self.weights, "epochs": self.epochs, "loss": self.loss}


def learn(
    job: Job,
    *,
    place: Place,
    checkpoints: Checkpoints | None,
    progress: Progress,
    watch: StallWatch,
) -> Learned:
    """Train as one of ``place.world`` processes; each of them comes to the same weights.

    Args:
        checkpoints: Where to go on from, and what to leave for who goes on; the same files for all processes.
    Raises:
        TrainerError: The weights do not fit, the recipe fails or hangs, or a loss is not finite.
        StorageFull: No room for a checkpoint.
    """
    recipe, plan = job.recipe, job.plan
    _quiet()
    torch.set_num_threads(plan.threads)
    # Deterministic without it too, but for networks that read memory that they have not written; it costs 4 % on a CNN.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # The network is drawn alike everywhere; from the first batch on each process draws for itself.
    seed_batch(plan.seed)
    network = recipe.network(learning_rate=plan.learning_rate, epochs=plan.epochs)
    if job.start is not None:
        load_weights(network, job.start)
    lighten(network)
    steps = Steps(rows=job.training, batch_size=plan.batch_size, world=place.world, device_rows=plan.device_rows)
    transform = recipe.transform()
    batches = TrainingBatches(steps, seed=plan.seed, rank=place.rank, augment=_augment(recipe), transform=transform)
    judged = ValidationBatches(job.validation, size=_EVALUATION_ROWS, transform=transform)
    best = BestEpoch(plan.patience)
    callbacks: list[pl.Callback] = [best, Course(plan, batches, rank=place.rank, progress=progress, watch=watch)]
    resume = None
    if checkpoints is not None:
        resume = _resume(checkpoints, place, progress)
        save = functools.partial(_save, checkpoints, steps.pieces)
        callbacks.append(Saving(save, every_s=plan.checkpoint_s, pieces=steps.pieces))
    trainer = _trainer(plan, place, steps, callbacks, checkpoints, moving=moves_batches(network))
    with _lightnings_advice_unheard(), watch.watching():
        try:
            trainer.fit(network, batches, judged, ckpt_path=resume)
        except ShoalError:
            raise
        except Exception as error:
            if place.world > 1 and _of_peers(error):
                raise PeerLost(str(error)) from error
            # Whatever the recipe's author wrote may fail in whatever way.
            raise RecipeError(blame(recipe, "failed in training", error)) from error
    if not best.weights:
        raise TrainerError(f"'{recipe.name}': no epoch came to its end; [training] epochs is {plan.epochs}")
    learned = Learned(weights=best.weights, epochs=trainer.current_epoch, loss=best.loss)
    if checkpoints is not None and place.rank == 0:
        checkpoints.write(FINISHED, learned.state())
    return learned


def load_weights(network: pl.LightningModule, weights: Mapping[str, NDArray[Any]]) -> None:
    """Copy weights by name into the network.

    Raises:
        TrainerError: A name or shape differs: the recipe's network was changed since those weights were made.
    """
    try:
        network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})
    except RuntimeError as error:
        raise TrainerError(f"the champion's weights do not fit the recipe's network: {error}") from error


class _Ranks(ClusterEnvironment):
    """Who is who, for Lightning; whoever started the processes has decided that.

    Each process is a node of its own to Lightning, which asks for as many processes on each node; groups that shrank
    have not.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._place.address

    @property
    def main_port(self) -> int:
        return self._place.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._place.world

    def set_world_size(self, size: int) -> None:
        """Decided already."""

    def global_rank(self) -> int:
        return self._place.rank

    def set_global_rank(self, rank: int) -> None:
        """Decided already."""

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return self._place.rank


def _trainer(
    plan: Plan,
    place: Place,
    steps: Steps,
    callbacks: list[pl.Callback],
    checkpoints: Checkpoints | None,
    *,
    moving: bool,
) -> pl.Trainer:
    gpu = plan.accelerator == "gpu" or (plan.accelerator == "auto" and torch.cuda.is_available())
    if gpu:
        # Without it cuBLAS refuses to be deterministic (CUDA, "Reproducibility"); read when CUDA is initialised.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return pl.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=[place.device] if gpu else 1,
        num_nodes=place.world,
        strategy=_strategy(plan, place, gpu=gpu, moving=gpu or moving),
        precision=_precision(plan.precision, gpu=gpu),
        max_epochs=plan.epochs,
        accumulate_grad_batches=steps.pieces,
        plugins=[checkpoints] if checkpoints is not None else None,
        logger=open_loggers(plan) if place.rank == 0 else False,
        enable_checkpointing=False,  # Saving does that: files that are whole, and resumption to the very batch
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # batches are shared out already
        deterministic=True,
        num_sanity_val_steps=0,
        profiler=NoProfiler(),
        callbacks=callbacks,
    )


def _strategy(plan: Plan, place: Place, *, gpu: bool, moving: bool) -> Any:
    if place.world == 1:
        return "auto" if moving else OneProcess()
    limit_s = plan.step_timeout_s + _PEER_GRACE_S if plan.step_timeout_s else 24 * 3600.0
    return (DDPStrategy if moving else SeveralProcesses)(
        cluster_environment=_Ranks(place),
        process_group_backend="nccl" if gpu else "gloo",
        timeout=dt.timedelta(seconds=limit_s),
        # A recipe whose heads are not all in the loss trains with one process; so it does with several.
        find_unused_parameters=True,
    )


def _precision(asked: str, *, gpu: bool) -> Any:
    if asked != "auto":
        return "32-true" if asked == "32" else asked
    # A processor computes bfloat16 slower than float32, but for the newest servers'.
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def _save(checkpoints: Checkpoints, pieces: int, trainer: pl.Trainer) -> None:
    trainer.save_checkpoint(checkpoints.folder / f"step-{(trainer.fit_loop.total_batch_idx + 1) // pieces:010}")


def _resume(checkpoints: Checkpoints, place: Place, progress: Progress) -> Path | None:
    damaged = []

    def note(message: str) -> None:
        damaged.append(message)
        progress(0.0, f"{message}; trying the one before", {})

    found = checkpoints.newest(note)
    if found is None:
        if damaged:
            progress(0.0, "no checkpoint is whole: training from scratch", {})
        return None
    if place.rank == 0:
        progress(0.0, f"going on from checkpoint {found.name.split('.')[0]}", {})
    return found


def _of_peers(error: BaseException) -> bool:
    """Whether the error is about the other processes, as gloo and NCCL tell it."""
    words = str(error).lower()
    told = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "timed out waiting")
    return isinstance(error, torch.distributed.DistError) or any(word in words for word in told)


def _augment(recipe: Recipe) -> Augment | None:
    found: Augment | None = getattr(recipe.module("model"), "augment", None)
    return found


@contextmanager
def _lightnings_advice_unheard() -> Iterator[None]:
    with warnings.catch_warnings():
        # Batches come from memory or are read ahead: Lightning's advice on worker processes does not apply.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Lightning 2.6 makes and copies a LeafSpec for each loader; torch from 2.10 on calls that deprecated.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        # An epoch may be shorter than what Lightning logs at a time.
        warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging")
        yield


def _quiet() -> None:
    """Lightning speaks of accelerators and seeds at each start; a run's log is for what differs."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
