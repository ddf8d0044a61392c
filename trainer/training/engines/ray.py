"""Training on a Ray cluster that is there already: the same job, its files carried along, its checkpoints brought back.

Machines of a cluster need not share a disk: the job travels through Ray's object store, and rank 0 hands each
checkpoint to a mailbox beside the driver, which writes it where the caller wants it. A process or a machine that is
lost ends the group; the next one has as many processes as the cluster then has room for, and goes on from the last
checkpoint with the same global batch.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from edge_agent.contract.errors import ConfigurationError, ShoalError
from edge_agent.durable import write_durably
from trainer.errors import WorkersLost
from trainer.training.checkpoints import Checkpoints
from trainer.training.job import (
    CHECKPOINTS_FOLDER,
    PROGRESS_FILE,
    Failure,
    failure_of,
    leave_failure,
    raise_failure,
    read_job,
)
from trainer.training.loop import PeerLost, Place, learn
from trainer.training.plan import RAY_ADDRESS, Compute, Plan, Progress
from trainer.training.watch import StallWatch

# A cluster that has less room than asked for is waited for, then used as it is.
_ROOM_WAIT_S = 20.0
_GIVE_UP_S = 300.0
_LOOK_S = 0.2
_CONNECT_S = 5.0
_NOT_CARRIED = ("lock", PROGRESS_FILE)


def run_on_ray(folder: Path, plan: Plan, compute: Compute, progress: Progress, *, restarts: int) -> None:
    """Train with ``compute.processes`` processes on the machines of a Ray cluster.

    Args:
        folder: The job, on this machine; checkpoints appear in it.
        restarts: How often a group may be started anew.
    Raises:
        ShoalError: What stopped the training, as the process said that met it.
        ConfigurationError: Ray is not installed, or there is no cluster at the address.
        WorkersLost: Processes or machines were lost too often.
    """
    ray = _connected(compute)
    mailbox = _mailbox(ray)
    carried = ray.put(_pack(folder))
    try:
        for attempt in range(restarts + 1):
            group = _Group(ray, plan, _room(ray, plan, compute, progress))
            lost = group.train(folder, carried, mailbox, progress)
            if not lost:
                return
            raise_failure(folder)
            progress(0.0, f"a process was lost ({lost}); starting again from the last checkpoint, {attempt + 1}", {})
    finally:
        ray.kill(mailbox)
    raise WorkersLost(f"processes on the Ray cluster were lost {restarts + 1} times; the last: {lost}")


def _connected(compute: Compute) -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError("engine ray needs Ray: pip install 'shoal[ray]', on each machine") from error
    if not ray.is_initialized():
        address = compute.ray_address or os.environ.get("RAY_ADDRESS") or "auto"
        try:
            _reach(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            first = next(iter(str(error).splitlines()), "")
            raise ConfigurationError(
                f"no Ray cluster at {address!r} ({first}); start one with `ray start --head`, or name its address in "
                f"{RAY_ADDRESS}"
            ) from error
    return ray


def _reach(address: str) -> None:
    """See whether somebody listens there: Ray itself asks an address where nobody does for two minutes.

    Raises:
        OSError: Nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()


class _Group:
    """Processes that train together, each an actor."""

    def __init__(self, ray: Any, plan: Plan, world: int) -> None:
        self._ray, self._world = ray, world
        gpus = 1 if plan.accelerator == "gpu" else 0
        kind = ray.remote(num_cpus=plan.threads, num_gpus=gpus, max_restarts=0, scheduling_strategy="SPREAD")(_Rank)
        self._actors = [kind.remote() for _ in range(world)]

    def train(self, folder: Path, carried: Any, mailbox: Any, progress: Progress) -> str:
        """Train to the end; says what was lost where it was not reached.

        Raises:
            ShoalError: What stopped the training.
        """
        ray = self._ray
        newest = Checkpoints(folder / CHECKPOINTS_FOLDER).newest(lambda message: progress(0.0, message, {}))
        resume = {} if newest is None else {f"{CHECKPOINTS_FOLDER}/{newest.name}": newest.read_bytes()}
        try:
            address, port = ray.get(self._actors[0].listen.remote(), timeout=_GIVE_UP_S)
            waiting = [
                actor.train.remote(
                    carried, resume, Place(rank=rank, world=self._world, address=address, port=port), mailbox
                )
                for rank, actor in enumerate(self._actors)
            ]
            lost = ""
            while waiting and not lost:
                done, waiting = ray.wait(waiting, timeout=_LOOK_S)
                _empty(ray, mailbox, folder, progress)
                raise_failure(folder)
                for each in done:
                    lost = lost or ray.get(each)
            _empty(ray, mailbox, folder, progress)
            raise_failure(folder)
            return lost
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            _empty(ray, mailbox, folder, progress)
            return next(iter(str(error).splitlines()), type(error).__name__)
        finally:
            for actor in self._actors:
                ray.kill(actor)


class _Rank:
    """One process, on whichever machine Ray puts it."""

    def listen(self) -> tuple[str, int]:
        """Where the group can meet: an address of this machine, and a port that was free a moment ago."""
        import ray

        address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        with socket.socket() as probe:
            probe.bind((address, 0))
            return address, int(probe.getsockname()[1])

    def train(self, carried: dict[str, bytes], resume: dict[str, bytes], place: Place, mailbox: Any) -> str:
        """Train as one of the group; gives what was lost, or nothing where the training is finished."""
        import ray

        with tempfile.TemporaryDirectory(prefix="shoal-training-") as name:
            folder = Path(name)
            _unpack(folder, carried | resume)

            def saved(path: Path) -> None:
                # Waited for: what the driver has not got, nobody goes on from.
                ray.get(mailbox.keep.remote(f"{CHECKPOINTS_FOLDER}/{path.name}", path.read_bytes()))

            def progress(fraction: float, message: str, metrics: Any) -> None:
                if place.rank == 0:
                    mailbox.say.remote(fraction, message, dict(metrics))

            def failed(error: ShoalError) -> None:
                ray.get(mailbox.fail.remote(failure_of(error)))

            def hung(complaint: str) -> None:
                from trainer.errors import RecipeHung

                failed(RecipeHung(complaint))
                os._exit(1)

            checkpoints = Checkpoints(folder / CHECKPOINTS_FOLDER, saved=saved)
            try:
                job = read_job(folder)
                watch = StallWatch(job.plan.step_timeout_s, hung=hung)
                learn(job, place=place, checkpoints=checkpoints, progress=progress, watch=watch)
            except PeerLost as error:
                return str(error)
            except ShoalError as error:
                failed(error)
                return str(error)
        return ""


class _Mailbox:
    """What rank 0 has to say and to keep; it outlives the group."""

    def __init__(self) -> None:
        self._said: list[tuple[float, str, dict[str, float]]] = []
        self._files: dict[str, bytes] = {}
        self._failure: Failure | None = None

    def say(self, fraction: float, message: str, metrics: dict[str, float]) -> None:
        self._said.append((fraction, message, metrics))

    def keep(self, name: str, data: bytes) -> None:
        self._files[name] = data

    def fail(self, failure: Failure) -> None:
        self._failure = self._failure or failure

    def take(self) -> tuple[list[tuple[float, str, dict[str, float]]], dict[str, bytes], Failure | None]:
        """All that is new."""
        taken = self._said, self._files, self._failure
        self._said, self._files, self._failure = [], {}, None
        return taken


def _mailbox(ray: Any) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Mailbox).remote()


def _empty(ray: Any, mailbox: Any, folder: Path, progress: Progress) -> None:
    said, files, failure = ray.get(mailbox.take.remote())
    for name, data in files.items():
        write_durably(folder / name, data)
    for fraction, message, metrics in said:
        progress(fraction, message, metrics)
    if failure is not None:
        leave_failure(folder, failure)


def _room(ray: Any, plan: Plan, compute: Compute, progress: Progress) -> int:
    """How many processes the cluster can run now: as many as were asked for, else after a while fewer."""
    per = "GPU" if plan.accelerator == "gpu" else "CPU"
    each = 1 if per == "GPU" else plan.threads
    begin = time.monotonic()
    while True:
        free = int(ray.available_resources().get(per, 0)) // each
        waited_s = time.monotonic() - begin
        if free >= compute.processes:
            return compute.processes
        if free and waited_s > _ROOM_WAIT_S:
            progress(0.0, f"the cluster has room for {free} of {compute.processes} processes: training with these", {})
            return free
        if waited_s > _GIVE_UP_S:
            raise WorkersLost(f"the Ray cluster has had no free {per} for {_GIVE_UP_S:g} s; wait, or add machines")
        time.sleep(_LOOK_S)


def _pack(folder: Path) -> dict[str, bytes]:
    """The job's files, but for what only this machine needs."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _NOT_CARRIED and path.parent.name != CHECKPOINTS_FOLDER
    }


def _unpack(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
