from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.checking import Violation
from edge_agent.contract.constraint import (
    DateFormat,
    Encoding,
    ImageFormat,
    ImageLimits,
    NumberFormat,
    Policy,
    Rule,
)
from edge_agent.contract.errors import SignatureMismatch
from edge_agent.contract.tensors import Datatype
from edge_agent.contract.text_encoding import as_sent
from tests.edge_agent.contract.images import IMAGES
from tests.edge_agent.contract.strategies import fast
from tests.edge_agent.contract.tensor_requests import (
    check,
    check_all,
    refusal,
    spec,
    text,
)


def test_enumerations_of_text_compare_whole_words_in_every_form_numpy_has_for_text() -> None:
    allowed = spec(Datatype.BYTES, allowed=("day", "nö"))
    for good in (np.array([["day", "nö"]]), text(["day", "nö".encode()]), np.array([[b"day", "nö".encode()]])):
        assert check(good, allowed).tolist() == [[b"day", "nö".encode()]]
    assert refusal(np.array([["d", "d"]]), allowed).rule == "enumeration"  # as <U1, 'day' would be cut to 'd'
    assert refusal(text([b"day", b"day\x00"]), allowed).detail == (
        "value b'day\\x00' at [0, 1] is not one of ['day', 'nö']"
    )


def test_text_comes_out_as_an_object_array_also_where_no_rule_looks_at_it() -> None:
    checked = check(np.array([[b"day", b"nacht"]]), spec(Datatype.BYTES))
    assert (checked.dtype, checked.tolist()) == (np.dtype(object), [[b"day", b"nacht"]])


def test_empty_text_is_missing_only_where_something_says_so() -> None:
    empty = text([b"", b"a"])
    assert check(empty, spec(Datatype.BYTES)) is empty
    assert check(empty, spec(Datatype.BYTES, allowed=("", "a"))) is empty
    assert refusal(empty, spec(Datatype.BYTES, allowed=("a",))).rule == "missing"
    assert check(empty, spec(Datatype.BYTES, allowed=("a",), nullable=True)) is empty
    filled = check(empty, spec(Datatype.BYTES, allowed=("a",), nullable=True, fill="n/a\x00"))
    assert filled.tolist() == [[b"n/a\x00", b"a"]]
    assert empty[0, 0] == b""


@pytest.mark.parametrize("element", [5, None, 1.5, [b"a"], "\ud800"])
def test_an_object_that_is_no_text_is_refused_with_its_place(element: object) -> None:
    array = text([b"a", b"b"], [b"c", b"d"])
    array[1, 1] = element
    error = refusal(array, spec(Datatype.BYTES))
    assert (error.rule, error.row) == ("datatype", 1)
    assert error.detail.startswith("element at [1, 1] is ")


def test_a_long_list_is_cut_in_the_error() -> None:
    words = tuple(f"w{at}" for at in range(500))
    detail = refusal(text([b"a", b"w1"]), spec(Datatype.BYTES, allowed=words)).detail
    assert detail.endswith("'w9', 'w10', 'w11', ... (500 in all)]")


def test_a_long_text_is_cut_in_the_error() -> None:
    assert len(refusal(text([b"a" * 100_000, b""]), spec(Datatype.BYTES, allowed=("a", ""))).detail) < 200


def test_text_in_any_encoding_reaches_the_model_in_utf_8() -> None:
    for encoding in (Encoding.LATIN_1, Encoding.UTF_16_LE, Encoding.GB18030, Encoding.UTF_8):
        one = spec(Datatype.BYTES, encoding=encoding, allowed=("nö", "ja"), max_length=2)
        sent = text(["nö".encode(encoding.value), "ja".encode(encoding.value)])
        assert check(sent, one).tolist() == [["nö".encode(), b"ja"]]
        assert check(text(["nö", "ja"]), one).tolist() == [["nö".encode(), b"ja"]]  # text that is decoded already
    plain = text([b"ja", b"ja"])
    assert check(plain, spec(Datatype.BYTES, encoding=Encoding.LATIN_1)) is plain


def test_bytes_that_are_no_text_of_the_encoding_are_told_with_their_place() -> None:
    array = text([b"a", b"b\xff"])
    error = refusal(array, spec(Datatype.BYTES, encoding=Encoding.UTF_8))
    assert str(error) == (
        "input 'x', row 0: encoding: value b'b\\xff' at [0, 1] is no utf-8: invalid start byte at byte 1"
    )
    assert "is no ascii" in refusal(text(["a", "ö"]), spec(Datatype.BYTES, encoding=Encoding.ASCII)).detail
    flagged = check_all(array, spec(Datatype.BYTES, encoding=Encoding.UTF_8, policies={Rule.ENCODING: Policy.FLAG}))
    assert flagged.inputs["x"] is array
    assert flagged.violations == (Violation("x", "encoding", "flag", 1, 0, "b'b\\xff'"),)
    limits: dict[str, Any] = {"encoding": Encoding.UTF_8, "fill": "?", "policies": {Rule.ENCODING: Policy.FILL}}
    assert check(array, spec(Datatype.BYTES, **limits)).tolist() == [[b"a", b"?"]]


def test_length_is_counted_in_characters_where_there_is_an_encoding_and_else_in_bytes() -> None:
    array = text(["nö".encode(), b"ja"])
    assert check(array, spec(Datatype.BYTES, encoding=Encoding.UTF_8, max_length=2)) is array
    error = refusal(array, spec(Datatype.BYTES, max_length=2))
    assert error.detail == "value b'n\\xc3\\xb6' at [0, 0] is longer than 2 bytes: it has 3"
    short = refusal(array, spec(Datatype.BYTES, encoding=Encoding.UTF_8, min_length=3))
    assert short.detail == "value 'nö' at [0, 0] is shorter than 3 characters: it has 2"


def test_text_that_is_too_long_can_be_cut_at_a_character() -> None:
    array = text(["nöö".encode(), b"ja"])
    cut = check_all(
        array, spec(Datatype.BYTES, encoding=Encoding.UTF_8, max_length=2, policies={Rule.LENGTH: Policy.CLIP})
    )
    assert cut.inputs["x"].tolist() == [["nö".encode(), b"ja"]]
    assert cut.violations == (Violation("x", "length", "clip", 1, 0, "'nöö'"),)
    assert array[0, 0] == "nöö".encode()
    binary = spec(Datatype.BYTES, max_length=2, policies={Rule.LENGTH: Policy.CLIP})
    assert check(array, binary).tolist() == [[b"n\xc3", b"ja"]]


def test_numbers_as_text_are_normalised_and_checked_as_numbers() -> None:
    german = NumberFormat(decimal=",", grouping=".")
    one = spec(Datatype.BYTES, number=german, minimum=-1, maximum=2000)
    assert check(text([b"1.234,50", b"-0,5"]), one).tolist() == [[b"1234.50", b"-0.5"]]
    error = refusal(text([b"1", b"2.000,1"]), one)
    assert error.detail == "value '2000.1' at [0, 1] is above the maximum 2000"
    wrong = refusal(text([b"1", b"1.5"]), one)
    assert wrong.detail == "value '1.5' at [0, 1] is no number of the form 1234,5"
    assert wrong.rule == "number"
    assert refusal(text([b"1", b""]), one).rule == "missing"


def test_numbers_as_text_can_be_clipped_filled_and_listed() -> None:
    number = NumberFormat()
    policies = {Rule.RANGE: Policy.CLIP, Rule.NUMBER: Policy.FILL}
    one = spec(Datatype.BYTES, number=number, minimum=0, maximum=2.5, fill="-1", policies=policies)
    seen = check_all(text([b"9", b"-3"], [b"1e0", b"x"]), one)
    assert seen.inputs["x"].tolist() == [[b"2.5", b"0"], [b"1e0", b"-1"]]
    assert [(each.rule, each.policy, each.rows) for each in seen.violations] == [
        ("number", "fill", 1),
        ("range", "clip", 1),
    ]
    listed = spec(Datatype.BYTES, number=number, allowed=(1, 2.5))
    assert check(text([b"1.0", b"2.50"]), listed).tolist() == [[b"1.0", b"2.50"]]
    assert refusal(text([b"1.0", b"2"]), listed).rule == "enumeration"
    flagged = spec(Datatype.BYTES, number=number, maximum=1, policies={Rule.NUMBER: Policy.FLAG})
    assert check(text([b"x", b"1"]), flagged).tolist() == [[b"x", b"1"]]


def test_dates_reach_the_model_in_utc() -> None:
    one = spec(
        Datatype.BYTES, date=DateFormat(format="%d.%m.%Y %H:%M", zone="Europe/Berlin"), nullable=True, fill="none"
    )
    sent = text([b"29.03.2026 01:30", b"29.03.2026 03:30"], [b"01.07.2026 00:00", b""])
    assert check(sent, one).tolist() == [
        [b"2026-03-29T00:30:00Z", b"2026-03-29T01:30:00Z"],
        [b"2026-06-30T22:00:00Z", b"none"],
    ]
    gap = refusal(text([b"29.03.2026 02:30", b""]), one)
    assert gap.detail == (
        "value '29.03.2026 02:30' at [0, 0] does not exist in Europe/Berlin: the clocks were put forward over it"
    )
    assert gap.rule == "date"


def test_a_date_that_has_its_normal_form_is_let_through_uncopied() -> None:
    array = text([b"2026-03-29T00:30:00Z", b"2026-03-29T00:30:00.250000Z"])
    assert check(array, spec(Datatype.BYTES, date=DateFormat())) is array


def test_images_are_judged_by_their_headers() -> None:
    array = text([IMAGES["png"], IMAGES["jpeg"]])
    assert check(array, spec(Datatype.BYTES, image=ImageLimits(max_width=37, min_height=21, max_pixels=777))) is array
    narrow = refusal(array, spec(Datatype.BYTES, image=ImageLimits(max_width=36)))
    assert str(narrow) == ("input 'x', row 0: image: value png 37x21 at [0, 0] has a width of 37, above the maximum 36")
    assert (
        "has a height of 21, below the minimum 22"
        in refusal(array, spec(Datatype.BYTES, image=ImageLimits(min_height=22))).detail
    )
    assert (
        "has a number of pixels of 777"
        in refusal(array, spec(Datatype.BYTES, image=ImageLimits(max_pixels=776))).detail
    )
    only = refusal(array, spec(Datatype.BYTES, image=ImageLimits(formats=(ImageFormat.PNG,))))
    assert only.detail == "value jpeg 37x21 at [0, 1] is of a format that the model does not take; it takes png"
    none = refusal(text([b"no image", IMAGES["png"]]), spec(Datatype.BYTES, image=ImageLimits()))
    assert none.detail.startswith("value b'no image' at [0, 0] does not begin an image; the model takes png, jpeg")


def test_an_image_can_be_flagged_and_an_empty_one_is_missing() -> None:
    array = text([b"no image", IMAGES["png"]])
    flagged = check_all(array, spec(Datatype.BYTES, image=ImageLimits(), policies={Rule.IMAGE: Policy.FLAG}))
    assert flagged.inputs["x"] is array
    assert flagged.violations == (Violation("x", "image", "flag", 1, 0, "b'no image'"),)
    empty = text([b"", IMAGES["png"]])
    assert refusal(empty, spec(Datatype.BYTES, image=ImageLimits())).rule == "missing"
    assert check(empty, spec(Datatype.BYTES, image=ImageLimits(), nullable=True)) is empty


def test_a_word_can_be_filled_or_flagged_where_it_is_none_of_those_allowed() -> None:
    array = text([b"day", b"noon"])
    filled = check_all(
        array, spec(Datatype.BYTES, allowed=("day",), fill="other", policies={Rule.ENUMERATION: Policy.FILL})
    )
    assert filled.inputs["x"].tolist() == [[b"day", b"other"]]
    assert filled.violations == (Violation("x", "enumeration", "fill", 1, 0, "b'noon'"),)
    assert array[0, 1] == b"noon"
    flagged = spec(
        Datatype.BYTES, allowed=("day",), policies={Rule.ENUMERATION: Policy.FLAG, Rule.MISSING: Policy.FLAG}
    )
    assert check(array, flagged) is array
    assert [one.rule for one in check_all(text([b"", b"day"]), flagged).violations] == ["missing"]


@fast
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), min_size=1), st.sampled_from(Encoding))
def test_every_text_that_an_encoding_can_write_reaches_the_model_unharmed(words: list[str], encoding: Encoding) -> None:
    try:
        sent = text([word.encode(encoding.value) for word in words])
    except UnicodeEncodeError:
        return
    decoded = [element.decode(encoding.value) for element in sent[0]]  # some codecs know one letter by two codes
    seen = check(sent, spec(Datatype.BYTES, shape=(None, None), encoding=encoding))
    assert [element.decode() for element in seen[0]] == decoded


@fast
@given(st.lists(st.binary(max_size=8), min_size=1, max_size=4), st.integers(1, 5), st.booleans())
def test_cut_text_is_never_longer_than_it_may_be(elements: list[bytes], most: int, decoded: bool) -> None:
    limits = {"encoding": Encoding.LATIN_1} if decoded else {}
    one = spec(Datatype.BYTES, (None, None), max_length=most, policies={Rule.LENGTH: Policy.CLIP}, **limits)
    for sent, seen in zip(elements, check(text(list(elements)), one)[0], strict=True):
        assert seen == (sent.decode("latin-1")[:most].encode() if decoded else sent[:most])


def test_text_out_of_json_is_written_in_the_encoding_that_the_constraint_names() -> None:
    from_json = text(["nö".encode(), b"ja"])
    for one in (spec(Datatype.BYTES), spec(Datatype.BYTES, encoding=Encoding.UTF_8)):
        assert as_sent(one, from_json) is from_json
    latin = spec(Datatype.BYTES, encoding=Encoding.LATIN_1)
    assert as_sent(latin, from_json).tolist() == [["nö".encode("latin-1"), b"ja"]]
    assert check(as_sent(latin, from_json), latin).tolist() == from_json.tolist()
    with pytest.raises(SignatureMismatch) as refused:
        as_sent(latin, text([b"ja", "\u65e5".encode()]))
    assert str(refused.value).startswith("input 'x', row 0: encoding: element at [0, 1] cannot be written in latin-1: ")
