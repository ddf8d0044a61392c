"""One tensor of BYTES against its constraint: binary, text, numbers and dates as text, or encoded images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.constraint import Constraint, Encoding, ImageLimits, Policy, Rule
from edge_agent.contract.errors import MessageError, SignatureMismatch
from edge_agent.contract.form_check import FormCheck
from edge_agent.contract.image_header import image_fault, read_image_header
from edge_agent.contract.signature import TensorSpec
from edge_agent.contract.tensors import Datatype, as_bytes
from edge_agent.contract.text_encoding import READ_AS_UTF_8, reason_of
from edge_agent.contract.text_formats import DateText, NumberText, TextFormat
from edge_agent.contract.violations import Findings, Violation, bound_text, listed, range_fault, shown

_OBJECT = Datatype.BYTES.numpy
_BYTES_ONLY = frozenset({bytes})


class TextCheck:
    """Checks one BYTES input; may be called from several threads.

    Args:
        spec: Its datatype is BYTES.
    """

    def __init__(self, spec: TensorSpec) -> None:
        limits = spec.constraint
        self.name = spec.name
        self._spec, self._form = spec, FormCheck(spec)
        self._tail = self._form.tail
        self._format = _text_format(limits)
        self._words = _right_as_they_are(limits)
        self._any_bytes = self._words is None and _anything_goes(limits)

    def __call__(self, array: NDArray[Any], found: list[Violation]) -> NDArray[Any]:
        """The array as the model may see it: itself, or a new one where something had to change.

        Args:
            array: Never written to.
            found: Takes violations that are let through.
        Returns:
            An object array of ``bytes``; UTF-8 where the constraint has an encoding.
        Raises:
            SignatureMismatch: Datatype, shape or a value breaks the signature.
        """
        shape = array.shape
        if array.dtype is not _OBJECT or shape[1:] != self._tail or not shape[0]:
            array = self._form.conform(array)
        elements = array.ravel().tolist()
        if array.dtype is _OBJECT and self._passes(elements):
            return array
        return _Case(self._spec, self._format, array, elements, found).judge()

    def _passes(self, elements: list[Any]) -> bool:
        """Whether all is surely right and stays as it is."""
        if self._words is not None:
            try:
                return self._words.issuperset(elements)
            except TypeError:  # an element that is no text has no hash
                return False
        return self._any_bytes and _BYTES_ONLY.issuperset(map(type, elements))


class _Case:
    """One tensor of one request, judged rule by rule; all lists are flat, in row-major order."""

    def __init__(
        self,
        spec: TensorSpec,
        form: TextFormat | None,
        array: NDArray[Any],
        elements: list[Any],
        found: list[Violation],
    ) -> None:
        self._spec, self._limits, self._format = spec, spec.constraint, form
        self._array, self._elements = array, elements
        self._findings = Findings(spec, array.shape, found)
        self._size = len(elements)
        # What the model will see, and what the rules look at: text where there is an encoding, else the bytes.
        self._seen: list[bytes] = self._as_bytes()
        self._words: list[Any] = list(self._seen)

    def judge(self) -> NDArray[Any]:
        """What the model may see.

        Raises:
            SignatureMismatch: A value breaks a rule whose policy is to reject.
        """
        limits, findings = self._limits, self._findings
        if limits.empty_is_missing:
            findings.missing(self._mask(lambda word: not word))
        encoding = limits.text_encoding
        if encoding is not None:
            self._decode(encoding)
        lengths = [len(word) for word in self._words]  # as sent: what a format makes of them is ours
        if self._format is not None:
            self._normalise(self._format, Rule.DATE if limits.date is not None else Rule.NUMBER)
        if limits.min_length is not None or limits.max_length is not None:
            self._check_length(lengths)
        if limits.minimum is not None or limits.maximum is not None:
            self._check_range()
        if limits.allowed is not None:
            self._check_allowed(limits.allowed)
        if limits.image is not None:
            self._check_image(limits.image)
        return self._result()

    def _as_bytes(self) -> list[bytes]:
        out: list[bytes] = []
        try:
            out.extend(element if type(element) is bytes else as_bytes(element) for element in self._elements)
        except MessageError as error:
            at = self._findings.place(len(out))
            detail = f"element at [{', '.join(str(axis) for axis in at)}] {error}"
            raise SignatureMismatch(self._spec.name, rule="datatype", detail=detail, row=at[0]) from error
        return out

    def _mask(self, wrong: Callable[[Any], bool]) -> NDArray[np.bool_]:
        """Which words are wrong, bool[size], but for those that an earlier rule has settled."""
        mask = np.fromiter(map(wrong, self._words), dtype=bool, count=self._size)
        return mask & ~self._findings.settled

    def _open(self) -> list[int]:
        """Indices of the elements that no rule has settled."""
        return [int(index) for index in np.flatnonzero(~self._findings.settled)]

    def _decode(self, encoding: Encoding) -> None:
        """Bytes become text; what the application gave as text must be writable in the encoding."""
        wrong = np.zeros(self._size, dtype=bool)
        reason = ""
        for index in self._open():
            element = self._elements[index]
            try:
                if isinstance(element, str):
                    element.encode(encoding.value)
                    self._words[index] = element
                else:
                    text = self._seen[index].decode(encoding.value)
                    self._words[index] = text
                    self._seen[index] = text.encode()
            except UnicodeError as error:
                wrong[index] = True
                reason = reason or reason_of(error)
        if wrong.any():
            first = self._seen[int(wrong.argmax())]
            self._findings.broken(Rule.ENCODING, wrong, shown(first), f"is no {encoding.value}: {reason}")
            self._findings.settled |= wrong

    def _normalise(self, form: TextFormat, rule: Rule) -> None:
        wrong = np.zeros(self._size, dtype=bool)
        reason = ""
        for index in self._open():
            try:
                self._put(index, form.normalise(self._words[index]))
            except ValueError as error:  # noqa: PERF203  # each word for itself: one that fails is one that is wrong
                wrong[index] = True
                reason = reason or str(error)
        if wrong.any():
            self._findings.broken(rule, wrong, shown(self._words[int(wrong.argmax())]), reason)
            self._findings.settled |= wrong

    def _check_length(self, lengths: list[int]) -> None:
        low, high = self._limits.min_length or 0, self._limits.max_length
        long = np.array(lengths)
        wrong = (long < low) | (long > (long if high is None else high))
        wrong &= ~self._findings.settled
        if not wrong.any():
            return
        first = int(wrong.argmax())
        unit = "bytes" if self._limits.text_encoding is None else "characters"
        bound = f"shorter than {low}" if lengths[first] < low else f"longer than {high}"
        why = f"is {bound} {unit}: it has {lengths[first]}"
        if self._findings.broken(Rule.LENGTH, wrong, shown(self._words[first]), why) is Policy.CLIP:
            for index in np.flatnonzero(wrong):
                self._put(int(index), self._words[index][:high])

    def _check_range(self) -> None:
        """Of numbers as text; the constraint's sense says that there is a number format."""
        low, high = self._limits.minimum, self._limits.maximum
        indices = self._open()
        numbers = np.full(self._size, np.nan)
        numbers[indices] = [float(self._words[index]) for index in indices]
        below = np.zeros(self._size, dtype=bool) if low is None else numbers < low
        above = np.zeros(self._size, dtype=bool) if high is None else numbers > high
        wrong = below | above
        if not wrong.any():
            return
        first = int(wrong.argmax())
        why = range_fault(self._limits, below=bool(below[first]))
        if self._findings.broken(Rule.RANGE, wrong, shown(self._words[first]), why) is Policy.CLIP:
            for mask, bound in ((below, low), (above, high)):
                for index in np.flatnonzero(mask):
                    self._put(int(index), bound_text(bound or 0.0))

    def _check_allowed(self, allowed: tuple[float | str, ...]) -> None:
        if self._limits.number is not None:
            numbers = frozenset(float(value) for value in allowed)
            settled = self._findings.settled
            wrong = np.array(
                [not settled[at] and float(word) not in numbers for at, word in enumerate(self._words)], dtype=bool
            )
        else:
            as_text = self._limits.text_encoding is not None
            known = frozenset(value if as_text else value.encode() for value in allowed if isinstance(value, str))
            wrong = self._mask(lambda word: word not in known)
        if wrong.any():
            value = shown(self._words[int(wrong.argmax())])
            self._findings.broken(Rule.ENUMERATION, wrong, value, f"is not one of {listed(allowed)}")

    def _check_image(self, limits: ImageLimits) -> None:
        faults = {index: image_fault(self._seen[index], limits) for index in self._open()}
        wrong = np.array([bool(faults.get(index)) for index in range(self._size)], dtype=bool)
        if wrong.any():
            first = int(wrong.argmax())
            header = read_image_header(self._seen[first])
            value = shown(self._seen[first][:16]) if header is None else str(header)
            self._findings.broken(Rule.IMAGE, wrong, value, faults[first])

    def _put(self, index: int, word: Any) -> None:
        if word is not self._words[index]:
            self._words[index] = word
            self._seen[index] = word.encode() if isinstance(word, str) else word

    def _result(self) -> NDArray[Any]:
        # Filled last: a fill may be a word that is not allowed on purpose, so that the model can tell it.
        if self._findings.to_fill.any():
            fill = str(self._limits.fill).encode()
            for index in np.flatnonzero(self._findings.to_fill):
                self._seen[int(index)] = fill
        same = zip(self._seen, self._elements, strict=True)
        if self._array.dtype is _OBJECT and all(
            seen is sent or (isinstance(sent, bytes) and seen == sent) for seen, sent in same
        ):
            return self._array
        out = np.empty(self._size, dtype=object)
        out[:] = self._seen
        return out.reshape(self._array.shape)


def _text_format(limits: Constraint) -> TextFormat | None:
    if limits.number is not None:
        return NumberText(limits.number)
    return None if limits.date is None else DateText(limits.date)


def _right_as_they_are(limits: Constraint) -> frozenset[bytes] | None:
    """The bytes of an enumeration's words, which satisfy every other rule too; None where there is no such list."""
    if limits.allowed is None or limits.number is not None or limits.encoding not in READ_AS_UTF_8:
        return None
    words = {value.encode() for value in limits.allowed if isinstance(value, str)}
    if limits.empty_is_missing:
        words.discard(b"")
        if limits.nullable and limits.fill is None:
            words.add(b"")
    return frozenset(words)


def _anything_goes(limits: Constraint) -> bool:
    """Whether bytes of any kind are right: no rule looks at them, and none is missing or filled."""
    return (
        limits.text_encoding is None
        and limits.min_length is None
        and limits.max_length is None
        and limits.image is None
        and limits.allowed is None
        and (not limits.empty_is_missing or (limits.nullable and limits.fill is None))
    )
