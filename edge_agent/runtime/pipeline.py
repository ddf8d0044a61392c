"""Several models of a device run as one: the output of one feeds another, as numpy arrays and without copies.

Tensors travel by name through a pool, which begins with the pipeline's inputs and ends with its outputs. A pipeline has
no weights of its own: each step leases its model for the time of its run, so that it can be replaced like any other,
and counts for the statistics and the health gate of that model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import msgspec
from numpy.typing import NDArray

from edge_agent.contract.checking import Checked, InputCheck
from edge_agent.contract.constraint import Constraint, DateFormat, Encoding, NumberFormat
from edge_agent.contract.errors import (
    CallerError,
    ModelFailed,
    ModelLoadFailed,
    ModelUnavailable,
    ShoalError,
    SignatureMismatch,
    UnknownModel,
)
from edge_agent.contract.manifest import PipelineStep, digest_of
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.runtime.backend import InferenceBackend, RunCancelled
from edge_agent.runtime.loaded import LoadedModel
from edge_agent.runtime.package import Package

Tensors = Mapping[str, NDArray[Any]]


class ModelSource(Protocol):
    """Where the steps' models are; :class:`edge_agent.runtime.slots.Slots`."""

    def get(self, model: str, version: str | None = None) -> LoadedModel:
        """The model that serves now."""

    def lease(self, model: str, version: str | None = None) -> contextlib.AbstractContextManager[LoadedModel]:
        """Hold it for the length of a ``with`` block."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """A step and the package that was found to fit it.

    Args:
        inputs: Names in the model and in the pool; ``outputs`` likewise.
        check: Of its inputs, as far as the pipeline's own check has not seen to them.
    """

    digest: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    check: InputCheck


class PipelineBackend:
    """The steps of a manifest as one backend; ``infer`` may be called from several threads at once.

    Args:
        models: Where the steps' models are leased.
    Raises:
        ModelLoadFailed: The steps do not fit together; it names the step and the tensor.
        ModelUnavailable: A step's model is not loaded on this device.
    """

    platform = "ensemble"

    def __init__(self, package: Package, models: ModelSource) -> None:
        manifest = package.manifest
        self.signature: Signature = manifest.signature
        self._name = manifest.name
        self._models = models
        self._steps = manifest.pipeline
        self._made_of = manifest.lineage.code_sha256
        self._inputs = frozenset(spec.name for spec in self.signature.inputs)
        self._outputs = tuple(spec.name for spec in self.signature.outputs)
        self._pool = {spec.name: spec for spec in self.signature.inputs}  # what each name holds, once it is filled
        self._plans: list[_Plan] = []
        for index in range(len(self._steps)):
            self._plans.append(self._compile(index, self._found(index)))
        self._check_ends()
        self._held: tuple[LoadedModel, ...] = ()
        self._leases = contextlib.ExitStack()
        self._running: dict[int, InferenceBackend] = {}
        self._cancels = 0
        self._uncounted: set[int] = set()

    @property
    def is_as_made(self) -> bool:
        """Whether its steps are those with which its golden samples were made: their digests are its lineage's code."""
        digests = "\n".join(plan.digest for plan in self._plans)
        return digest_of(digests.encode()) == self._made_of or all(step.version for step in self._steps)

    def infer(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Run all steps; see :class:`edge_agent.runtime.backend.InferenceBackend`.

        Args:
            inputs: As the check against the pipeline's own signature has left them.
        Raises:
            SignatureMismatch: An input breaks the signature of the step that takes it.
            ModelUnavailable: A step's model is not loaded now, or its new version does not fit.
            ModelFailed: A step failed; it names the step.
        """
        pool = dict(inputs)
        cancels = self._cancels
        for index, step in enumerate(self._steps):
            held = self._held  # looked up anew for each step: they may be about to be replaced
            if held:
                self._run(index, held[index], pool, cancels)
                continue
            try:
                lease = self._models.lease(step.model, step.version)
            except (UnknownModel, ModelUnavailable) as error:
                raise ModelUnavailable(f"{self._step(index)}: {error}") from error
            with lease as loaded:
                self._run(index, loaded, pool, cancels)
        return {name: pool[name] for name in self._outputs}

    def hold(self) -> None:
        """Run on the steps that serve now until it is closed: they and this pipeline are about to be replaced together.

        A request that began on it so ends with the models that it began with. Where a step is not loaded it changes
        nothing.
        """
        if self._held:
            return
        with contextlib.suppress(UnknownModel, ModelUnavailable), contextlib.ExitStack() as leases:
            held = tuple(leases.enter_context(self._models.lease(step.model, step.version)) for step in self._steps)
            self._leases, self._held = leases.pop_all(), held

    def cancel(self) -> None:
        """Break off the steps that run, and run none after them."""
        self._cancels += 1
        for backend in list(self._running.values()):
            backend.cancel()

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """For the length of a ``with`` block: runs in this thread are no live requests, and count for no step."""
        thread = threading.get_ident()
        self._uncounted.add(thread)
        try:
            yield
        finally:
            self._uncounted.discard(thread)

    def close(self) -> None:
        """Let go of the steps, where it holds them; the models belong to their slots."""
        self._held = ()
        self._leases.close()

    def _run(self, index: int, loaded: LoadedModel, pool: dict[str, NDArray[Any]], cancels: int) -> None:
        """One step, from the pool into the pool."""
        plan = self._plans[index]
        if plan.digest != loaded.digest:
            try:
                plan = self._plans[index] = self._compile(index, loaded)
            except ModelLoadFailed as error:
                raise ModelUnavailable(str(error)) from error
        begin_ns = time.perf_counter_ns()
        try:
            checked = plan.check({name: pool[source] for name, source in plan.inputs})
            start_ns = time.perf_counter_ns()
            outputs = self._infer(loaded, checked.inputs, cancels)
        except SignatureMismatch as error:
            raise self._mismatch(index, plan, error) from error
        except RunCancelled:
            raise
        except Exception as error:
            self._count_failure(loaded, begin_ns)
            if isinstance(error, ShoalError) and not isinstance(error, ModelFailed):
                raise
            raise ModelFailed(f"{self._step(index)} version '{loaded.version}' failed: {error}") from error
        end_ns = time.perf_counter_ns()
        for name, target in plan.outputs:
            pool[target] = outputs[name]
        self._count(loaded, checked, (begin_ns, start_ns, end_ns))

    def _count(self, loaded: LoadedModel, checked: Checked, times_ns: tuple[int, int, int]) -> None:
        """Count a step's run; times are when its check began, when its run did, and when that ended."""
        if self._uncounted and threading.get_ident() in self._uncounted:
            return
        begin_ns, start_ns, end_ns = times_ns
        loaded.statistics.answered(_rows(checked.inputs), start_ns - begin_ns, end_ns - start_ns, 0)
        if checked.violations:
            loaded.statistics.violated(checked.violations)

    def _count_failure(self, loaded: LoadedModel, begin_ns: int) -> None:
        if threading.get_ident() not in self._uncounted:
            loaded.statistics.failed(time.perf_counter_ns() - begin_ns)

    def _infer(self, loaded: LoadedModel, inputs: Tensors, cancels: int) -> dict[str, NDArray[Any]]:
        thread = threading.get_ident()
        # First noted down, then compared: a cancel at this moment finds the one or changes the other.
        self._running[thread] = loaded.backend
        try:
            if self._cancels != cancels:
                raise RunCancelled("between two steps")
            outputs = loaded.backend.infer(inputs)
            if self._cancels != cancels:
                raise RunCancelled("at the end of a step")
            return outputs
        finally:
            del self._running[thread]

    def _mismatch(self, index: int, plan: _Plan, error: SignatureMismatch) -> CallerError | ModelFailed:
        """Whose fault it is that a step's input breaks its signature: the application's, or the step's before."""
        source = dict(plan.inputs).get(error.tensor, "")
        if source in self._inputs:
            detail = f"{error.detail} ({self._step(index)})"
            return SignatureMismatch(source, rule=error.rule, detail=detail, row=error.row)
        return ModelFailed(f"{self._step(index)} cannot take what an earlier step gives: {error}")

    def _step(self, index: int) -> str:
        return f"pipeline '{self._name}', step {index + 1} '{self._steps[index].model}'"

    def _found(self, index: int) -> LoadedModel:
        step = self._steps[index]
        try:
            return self._models.get(step.model, step.version)
        except (UnknownModel, ModelUnavailable) as error:
            raise ModelUnavailable(f"{self._step(index)}: {error}") from error

    def _compile(self, index: int, loaded: LoadedModel) -> _Plan:
        """The plan of a step for this package of its model; at load it also says what the pool holds after it."""
        if loaded.manifest.pipeline:
            raise ModelLoadFailed(f"{self._step(index)}: is a pipeline itself; name its steps here instead")
        step, signature = self._steps[index], loaded.signature
        where = f"{self._step(index)} version '{loaded.version}'"
        self._check_names(where, step, signature)
        inputs = tuple((spec.name, step.inputs.get(spec.name, spec.name)) for spec in signature.inputs)
        outputs = tuple((spec.name, step.outputs.get(spec.name, spec.name)) for spec in signature.outputs)
        before = self._inputs.union(*({target for _, target in plan.outputs} for plan in self._plans[:index]))
        for spec, (_, source) in zip(signature.inputs, inputs, strict=True):
            if source not in before:
                raise ModelLoadFailed(
                    f"{where}: input '{spec.name}' is to come from '{source}', which nothing before gives; there are: "
                    f"{sorted(before)}"
                )
            _compare(f"{where}: input '{spec.name}'", spec, self._pool[source])
        if index < len(self._plans):
            outputs = self._outputs_again(where, self._plans[index], signature, outputs)
        else:
            self._fill_pool(where, signature, outputs)
        arriving = tuple(
            _arriving(spec, self._pool[source]) if source in self._inputs else spec
            for spec, (_, source) in zip(signature.inputs, inputs, strict=True)
        )
        check = InputCheck(msgspec.structs.replace(signature, inputs=arriving))
        return _Plan(loaded.digest, inputs, outputs, check)

    def _fill_pool(self, where: str, signature: Signature, outputs: tuple[tuple[str, str], ...]) -> None:
        for spec, (_, target) in zip(signature.outputs, outputs, strict=True):
            if target in self._pool:
                raise ModelLoadFailed(
                    f"{where}: output '{spec.name}' would replace '{target}': give it another name under 'outputs'"
                )
            self._pool[target] = spec

    def _outputs_again(
        self, where: str, old: _Plan, signature: Signature, outputs: tuple[tuple[str, str], ...]
    ) -> tuple[tuple[str, str], ...]:
        """Of a new version of a step: it must give what the one gave that was there at load; more is left out."""
        wanted = [target for _, target in old.outputs]
        given = {target: spec for spec, (_, target) in zip(signature.outputs, outputs, strict=True)}
        for target in wanted:
            if target not in given:
                raise ModelLoadFailed(f"{where}: gives no '{target}' any more; it gives: {sorted(given)}")
            _compare(f"{where}: output '{given[target].name}'", given[target], self._pool[target])
        return tuple((name, target) for name, target in outputs if target in wanted)

    def _check_names(self, where: str, step: PipelineStep, signature: Signature) -> None:
        """Refuse a step that speaks of tensors that its model does not have."""
        for side, told, specs in (
            ("input", step.inputs, signature.inputs),
            ("output", step.outputs, signature.outputs),
        ):
            known = [spec.name for spec in specs]
            for name in told:
                if name not in known:
                    raise ModelLoadFailed(f"{where}: the model has no {side} '{name}'; it has: {', '.join(known)}")

    def _check_ends(self) -> None:
        """Refuse a pipeline that leaves an input unused, or does not give an output."""
        used = {source for plan in self._plans for _, source in plan.inputs}
        for name in sorted(self._inputs - used - set(self._outputs)):
            raise ModelLoadFailed(f"pipeline '{self._name}': no step uses input '{name}'")
        for spec in self.signature.outputs:
            held = self._pool.get(spec.name)
            if held is None:
                raise ModelLoadFailed(
                    f"pipeline '{self._name}': no step gives output '{spec.name}'; there are: {sorted(self._pool)}"
                )
            _compare(f"pipeline '{self._name}': output '{spec.name}'", spec, held)


def _arriving(spec: TensorSpec, own: TensorSpec) -> TensorSpec:
    """A step's input that the pipeline's ``own`` input feeds, as it is to be checked: by then that has been checked.

    What the pipeline's check made of a value must not be made again: text is UTF-8 already, numbers and dates have
    the form that models see, and a fill may lie outside of the range on purpose.
    """
    limits, done = spec.constraint, own.constraint
    if limits == msgspec.structs.replace(done, sensitivity=limits.sensitivity, unit=limits.unit):
        limits = Constraint(nullable=True, axes=limits.axes)
    else:
        limits = msgspec.structs.replace(
            limits,
            encoding=Encoding.UTF_8 if limits.encoding and done.text_encoding else limits.encoding,
            number=NumberFormat() if limits.number and done.number else limits.number,
            date=DateFormat() if limits.date and done.date else limits.date,
        )
    return msgspec.structs.replace(spec, constraint=limits)


def _compare(where: str, wanted: TensorSpec, held: TensorSpec) -> None:
    """Refuse tensors that can never be one; dynamic axes show their sizes only when they run."""
    if wanted.datatype is not held.datatype:
        raise ModelLoadFailed(f"{where} is {wanted.datatype.value}, '{held.name}' is {held.datatype.value}")
    fits = len(wanted.shape) == len(held.shape) and all(
        want is None or have is None or want == have for want, have in zip(wanted.shape, held.shape, strict=True)
    )
    if not fits:
        raise ModelLoadFailed(f"{where} has shape {_shape(wanted)}, '{held.name}' has {_shape(held)}")


def _shape(spec: TensorSpec) -> str:
    return f"[{', '.join('-1' if axis is None else str(axis) for axis in spec.shape)}]"


def _rows(inputs: Tensors) -> int:
    for array in inputs.values():
        return len(array)
    return 0
