"""Text inputs as numbers: the graph that stands before the network, in training and on devices alike.

torch knows no text, so ``forward`` takes numbers in place of it, and what they are follows from the contract: an
enumeration becomes the index of a category, a date becomes a point in time, a number written as text becomes a number.
It is one ONNX graph, run by the devices' own runtime in training and put before the network on export: there is no
second implementation that could come to differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.constraint import Constraint, DateFormat, Policy, Rule
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.contract.text_formats import DateText

if TYPE_CHECKING:
    import onnx

# What forward sees in place of a missing date: the smallest int64, as numpy's NaT.
MISSING_SECONDS = -(2**63)
# What forward sees in place of a missing or unknown category; those of the contract follow, from 1.
UNKNOWN_CATEGORY = 0
# The first with StringSplit; torch's exporter writes this one too.
_OPSET = 20
_ML_OPSET = 4
_IR_VERSION = 10
_FORMAT_RULES = (Rule.ENCODING, Rule.NUMBER, Rule.DATE)
# 1 March 0000 to 1 January 1970, in days.
_EPOCH_DAYS = 719_468


@dataclass(frozen=True)
class FrontEnd:
    """What becomes of a signature's inputs before ``forward``; one without text changes nothing.

    Args:
        signature: Its BYTES inputs are what is encoded; :func:`check_text` has let them through.
    """

    signature: Signature

    @property
    def text(self) -> tuple[TensorSpec, ...]:
        """The inputs that are encoded."""
        return tuple(spec for spec in self.signature.inputs if spec.datatype is Datatype.BYTES)

    @property
    def categories(self) -> dict[str, int]:
        """By the name of each categorical input how many indices it has, that of unknown values among them."""
        return {spec.name: len(spec.constraint.allowed or ()) + 1 for spec in self.text if _kind(spec) == "category"}

    def encode(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The inputs as ``forward`` takes them.

        Args:
            inputs: By name, as the contract lets them through: text is ``bytes`` in object arrays; axis 0 is N.
        Returns:
            The same arrays, but for text: int64 categories or seconds, float32 numbers, of the text's shape.
        """
        encoded = dict(inputs)
        if self.text and len(next(iter(inputs.values()))):
            names = [spec.name for spec in self.text]
            given = {name: _strings(inputs[name]) for name in names}
            encoded.update(zip(names, self._session.run([encoded_name(name) for name in names], given), strict=True))
        else:
            encoded.update({spec.name: np.empty(inputs[spec.name].shape, _dtype(spec)) for spec in self.text})
        return encoded

    def dtype(self, spec: TensorSpec) -> np.dtype[Any]:
        """What ``forward`` takes in place of an input."""
        return _dtype(spec)

    def example(self, spec: TensorSpec, values: NDArray[np.float64]) -> NDArray[Any]:
        """Rows that the exporter may trace with in place of a text input's.

        Args:
            values: In 0..1, of the shape that is wanted.
        """
        if _kind(spec) == "category":
            values = np.floor(values * self.categories[spec.name])
        return values.astype(_dtype(spec))

    def attach(self, model: onnx.ModelProto) -> None:
        """Put the graph before a network whose text inputs are called :func:`encoded_name`."""
        if not self.text:
            return
        ours = self._model()
        encoded = {encoded_name(spec.name) for spec in self.text}
        theirs = {value.name: value for value in model.graph.input if value.name not in encoded}
        own = {value.name: value for value in ours.graph.input}
        ordered = [{**theirs, **own}[spec.name] for spec in self.signature.inputs]
        nodes = [*ours.graph.node, *model.graph.node]
        del model.graph.input[:], model.graph.node[:]
        model.graph.input.extend(ordered)
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(ours.graph.initializer)
        have = {opset.domain for opset in model.opset_import}
        model.opset_import.extend(opset for opset in ours.opset_import if opset.domain not in have)

    @cached_property
    def _session(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(
            self._model().SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def _model(self) -> onnx.ModelProto:
        from onnx import TensorProto, helper

        graph = _Graph()
        inputs, outputs = [], []
        for spec in self.text:
            shape = [f"{spec.name}_{at}" if axis is None and at else axis or "N" for at, axis in enumerate(spec.shape)]
            target = encoded_name(spec.name)
            graph.encode(spec, target)
            inputs.append(helper.make_tensor_value_info(spec.name, TensorProto.STRING, shape))
            outputs.append(helper.make_tensor_value_info(target, helper.np_dtype_to_tensor_dtype(_dtype(spec)), shape))
        made = helper.make_graph(graph.nodes, "front_end", inputs, outputs, graph.initializers)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
        return helper.make_model(made, opset_imports=opsets, ir_version=_IR_VERSION)


def encoded_name(name: str) -> str:
    """What the graph calls a text input once it is numbers."""
    return f"{name}.encoded"


def check_text(spec: TensorSpec) -> None:
    """Whether a BYTES input's contract says how it becomes numbers, for all that it lets through.

    Raises:
        ValueError: It does not; the error names the input and what to write.
    """
    limits = spec.constraint
    if spec.datatype is not Datatype.BYTES:
        return
    kind = _kind(spec)
    if kind is None and limits.image is not None:
        raise ValueError(
            f"{spec.name}: the network takes numbers, and nothing decodes an image in a file's bytes for it; declare "
            "its pixels instead: datatype UINT8, shape [-1, height, width, 3]"
        )
    if kind is None:
        raise ValueError(
            f"{spec.name}: nothing says how this text becomes numbers for the network; give the constraint a list of "
            "allowed words, a date or a number format, or send numbers"
        )
    for rule in _FORMAT_RULES:
        if kind != "category" and limits.policy(rule) is Policy.FLAG:
            raise ValueError(
                f"{spec.name}: policies.{rule.value} is flag, but text that is no {kind} gives the network no number; "
                "use fill or reject"
            )
    if limits.fill:
        _check_fill(spec.name, str(limits.fill), kind, limits)


def _check_fill(name: str, fill: str, kind: str, limits: Constraint) -> None:
    """A fill is put in place after all checks, so that it must have the form that the network is given."""
    if kind == "number":
        try:
            float(fill)
        except ValueError:
            raise ValueError(
                f"{name}: fill {fill!r} is no number; write it with a point, as the model sees it"
            ) from None
    if kind == "date" and limits.date is not None:
        try:
            right = DateText(DateFormat()).normalise(fill) == fill
        except ValueError:
            right = False
        if not right:
            raise ValueError(f"{name}: fill {fill!r} is no date as the model sees it: 2026-03-29T01:30:00Z")


def _kind(spec: TensorSpec) -> str | None:
    limits = spec.constraint
    if limits.date is not None:
        return "date"
    if limits.number is not None:
        return "number"
    return None if limits.allowed is None else "category"


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    if spec.datatype is not Datatype.BYTES:
        return spec.datatype.numpy
    return np.dtype("<f4") if _kind(spec) == "number" else np.dtype("<i8")


def _strings(array: NDArray[Any]) -> NDArray[Any]:
    out = np.empty(array.size, dtype=object)
    out[:] = [element if isinstance(element, str) else bytes(element).decode() for element in array.ravel()]
    return out.reshape(array.shape)


class _Graph:
    """Nodes and constants, named after the input that they are for."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._prefix, self._named = "", 0

    def encode(self, spec: TensorSpec, target: str) -> None:
        """Add what makes numbers called ``target`` of a text input."""
        self._prefix = f"{spec.name}/"
        if _kind(spec) == "category":
            words = [str(word) for word in spec.constraint.allowed or ()]
            self._add(
                "LabelEncoder",
                spec.name,
                to=target,
                domain="ai.onnx.ml",
                keys_strings=words,
                values_int64s=list(range(1, len(words) + 1)),
                default_int64=UNKNOWN_CATEGORY,
            )
            return
        missing = self._add("Equal", spec.name, self._constant(""))
        if _kind(spec) == "number":
            number = self._add("Where", missing, self._constant("NaN"), spec.name)
            self._add("Cast", number, to=target, to_type=np.dtype("<f4"))
            return
        date = self._add("Where", missing, self._constant("1970-01-01T00:00:00Z"), spec.name)
        self._add("Where", missing, self._constant(MISSING_SECONDS), self._seconds(date), to=target)

    def _seconds(self, date: str) -> str:
        """Of ``2026-03-29T01:30:00.5Z`` the whole seconds since 1970, int64."""
        halves = self._split(date, "T")
        day = self._cast(self._split(self._at(halves, 0), "-"), np.dtype("<i8"))
        clock = self._split(self._at(self._split(self._at(halves, 1), "Z"), 0), ":")
        # By way of a float: the seconds may have a fraction, which is dropped.
        clock = self._cast(self._cast(clock, np.dtype("<f8")), np.dtype("<i8"))
        days = self._days(self._at(day, 0), self._at(day, 1), self._at(day, 2))
        hours = self._sum(self._times(days, 24), self._at(clock, 0))
        minutes = self._sum(self._times(hours, 60), self._at(clock, 1))
        return self._sum(self._times(minutes, 60), self._at(clock, 2))

    def _days(self, year: str, month: str, day: str) -> str:
        """Days since 1970 of a day in the Gregorian calendar; years begin in March, so that 29 February ends one.

        Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil.
        """
        early = self._cast(self._add("Less", month, self._constant(3)), np.dtype("<i8"))
        year = self._add("Sub", year, early)
        month = self._add("Mod", self._sum(month, self._constant(9)), self._constant(12))
        before = self._over(self._sum(self._times(month, 153), self._constant(2)), 5)
        leaps = self._sum(self._add("Sub", self._over(year, 4), self._over(year, 100)), self._over(year, 400))
        whole = self._sum(self._times(year, 365), leaps)
        days = self._sum(self._sum(whole, before), day)
        return self._add("Sub", days, self._constant(_EPOCH_DAYS + 1))

    def _split(self, text: str, delimiter: str) -> str:
        parts, count = self._name(), self._name()
        self._node("StringSplit", [text], [parts, count], delimiter=delimiter)
        return parts

    def _at(self, parts: str, index: int) -> str:
        return self._add("Gather", parts, self._constant(index), axis=-1)

    def _sum(self, a: str, b: str) -> str:
        return self._add("Add", a, b)

    def _times(self, a: str, factor: int) -> str:
        return self._add("Mul", a, self._constant(factor))

    def _over(self, a: str, divisor: int) -> str:
        return self._add("Div", a, self._constant(divisor))

    def _cast(self, a: str, dtype: np.dtype[Any]) -> str:
        return self._add("Cast", a, to_type=dtype)

    def _add(
        self, kind: str, *inputs: str, to: str = "", to_type: np.dtype[Any] | None = None, **attributes: Any
    ) -> str:
        from onnx import helper

        if to_type is not None:
            attributes["to"] = helper.np_dtype_to_tensor_dtype(to_type)
        target = to or self._name()
        self._node(kind, list(inputs), [target], **attributes)
        return target

    def _node(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, name=f"{outputs[0]}:{kind}", **attributes))

    def _constant(self, value: int | str) -> str:
        from onnx import TensorProto, helper

        name = self._name()
        kind = TensorProto.INT64 if isinstance(value, int) else TensorProto.STRING
        held: Any = value if isinstance(value, int) else value.encode()
        self.initializers.append(helper.make_tensor(name, kind, [], [held]))
        return name

    def _name(self) -> str:
        self._named += 1
        return f"{self._prefix}{self._named}"
