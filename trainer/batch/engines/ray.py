"""The Ray engine: Ray Data hands the parts of a batch to actors of a cluster, which read, answer and write them.

What travels through Ray are names of parts and marks, not rows: the object store stays empty, and memory is bounded by
a chunk for each actor. Input and output must lie where every node finds them under the same name.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from edge_agent.contract.batch import BatchJob
from edge_agent.contract.errors import ConfigurationError, ShoalError
from edge_agent.contract.manifest import MANIFEST_FILE
from edge_agent.runtime.package import Package
from trainer.batch.chunks import Chunks
from trainer.batch.engines.local import chunk_rows
from trainer.batch.errors import EngineFailed
from trainer.batch.model import BatchModel
from trainer.batch.outputs.ledger import write_mark
from trainer.batch.parts import OpenPart, Stage
from trainer.batch.plan import Part, PartDone, Plan
from trainer.batch.storage import Storage

_PART, _DONE = "part", "done"
_OBJECT_STORE_BYTES = 128 << 20


class RayEngine:
    """Answers parts by actors of a Ray cluster, each on one processor with a model of its own.

    Args:
        job: What the actors are to do.
        schema: Of the input.
    Raises:
        ConfigurationError: Ray is not installed here.
    """

    def __init__(self, job: BatchJob, package: Package, schema: pa.Schema) -> None:
        try:
            import ray.data
        except ModuleNotFoundError as error:
            raise ConfigurationError("engine = \"ray\" needs Ray: pip install 'shoal[trainer,ray]'") from error
        self._ray: Any = ray
        self._job, self._package, self._schema = job, package, schema

    def answer(
        self,
        plan: Plan,
        parts: Sequence[Part],
        stage: Stage,
        *,
        on_rows: Callable[[int], None],
        on_done: Callable[[PartDone], None],
    ) -> None:
        """Answer parts; see :meth:`trainer.batch.engines.local.LocalEngine.answer`.

        Raises:
            ShoalError: The first thing that went wrong in an actor.
            EngineFailed: The cluster cannot be reached, or lost its actors.
        """
        with self._cluster():
            workers = max(1, min(len(parts), self._job.resources.workers or self._processors()))
            arguments = (
                msgspec.json.encode(self._job),
                msgspec.json.encode(plan),
                msgspec.json.encode(stage),
                self._schema.serialize().to_pybytes(),
                _files(self._package),
            )
            items = [{_PART: msgspec.json.encode(part)} for part in parts]
            try:
                # A block a part, by hand: of its own accord Ray puts many into one, and one actor does everything. Not
                # by .repartition(): its tasks wait for processors that the actors hold already, for ever.
                blocks = self._ray.data.from_items(items, override_num_blocks=len(items))
                answerer: Any = Answerer
                actors = self._ray.data.ActorPoolStrategy(size=workers)
                found = blocks.map(answerer, fn_constructor_args=arguments, num_cpus=1, compute=actors)
                for row in found.iter_rows():
                    done = msgspec.json.decode(row[_DONE], type=PartDone)
                    on_done(done)
                    on_rows(done.rows + done.rejected)
            except self._ray.exceptions.RayError as error:
                raise _cause(error) from error

    def _processors(self) -> int:
        resources: dict[str, float] = self._ray.cluster_resources()
        return int(resources.get("CPU", 1))

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[None]:
        """A cluster that is there, else one on this machine for as long as the batch."""
        ray = self._ray
        if ray.is_initialized():
            yield
            return
        address, workers = self._job.resources.address, self._job.resources.workers
        own: dict[str, Any] = {}
        if address is None:  # RAY_ADDRESS may still name one, of which these would be refused
            own = {"include_dashboard": False}
            if not _named_by_environment():
                own |= {"num_cpus": workers, "object_store_memory": _OBJECT_STORE_BYTES}
        try:
            ray.init(address=address, log_to_driver=False, **own)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise EngineFailed(f"the Ray cluster {address or 'on this machine'} cannot be reached: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()


class Answerer:
    """An actor: a model of its own, and parts one after the other."""

    def __init__(self, job: bytes, plan: bytes, stage: bytes, schema: bytes, files: dict[str, bytes]) -> None:
        self._job = msgspec.json.decode(job, type=BatchJob)
        self._plan = msgspec.json.decode(plan, type=Plan)
        self._stage = msgspec.json.decode(stage, type=Stage)
        with tempfile.TemporaryDirectory(prefix="shoal-package-") as folder:
            for name, data in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            resources = self._job.resources
            self._model = BatchModel(
                Package.open(Path(folder), verify=True),
                variant=self._job.model.variant,
                outputs=self._job.outputs,
                batch_rows=resources.batch_rows,
            )
        known = pa.ipc.read_schema(pa.py_buffer(schema))
        self._chunks = Chunks(self._job, self._model, known, f"job '{self._job.name}': the input")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answer one part, and mark it as done at once: what an actor has finished outlives the driver."""
        part = msgspec.json.decode(row[_PART], type=Part)
        rows = chunk_rows(self._model)
        opened = OpenPart(self._plan, part, self._stage, self._chunks, chunk_rows=rows)
        try:
            while (chunk := opened.next()) is not None:
                opened.answer(chunk)
        except BaseException:
            opened.abandon()
            raise
        done = opened.finish()
        write_mark(Storage(self._stage.marks), done)
        return {_DONE: msgspec.json.encode(done)}


def _files(package: Package) -> dict[str, bytes]:
    """The bytes of a package: nodes share the data, not the trainer's folder of packages."""
    names = (MANIFEST_FILE, *package.manifest.files)
    return {name: (package.folder / name).read_bytes() for name in names}


def _named_by_environment() -> bool:
    import os

    return bool(os.environ.get("RAY_ADDRESS"))


def _cause(error: BaseException) -> ShoalError:
    """The error of ours that an actor raised, else what became of the actor."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ShoalError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return EngineFailed(f"Ray: {str(error).strip().splitlines()[-1][:500]}")
