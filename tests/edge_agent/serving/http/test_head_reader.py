"""What a connection remembers of its last head never shows: every head is read as if it were the first."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.contract.errors import ShoalError
from edge_agent.serving.http.head import Head, read_head
from edge_agent.serving.http.head_reader import HeadReader

_LINES = st.sampled_from([
    b"POST /a HTTP/1.1", b"POST /b:c HTTP/1.1", b"GET /a HTTP/1.0", b"POST /a HTTP/3.1",
])  # fmt: skip
_NAMES = st.sampled_from([
    b"Host", b"host", b"Content-Length", b"content-length", b"Transfer-Encoding", b"Connection", b"Expect", b"Upgrade",
    b"X-Id", b"x-id", b"Accept", b"Accept ", b" Accept", b"",
])  # fmt: skip
_VALUES = st.one_of(
    st.sampled_from([
        b"0", b"5", b"17", b"+5", b"5, 5", b"1" * 18, b"1" * 19, b"9" * 30, b"", b" ", b"\t5\t", b"chunked", b"close",
        b"keep-alive", b"100-continue", b"a: b", b"a\rb", b"a\nb", b"\0", b"\x80", b"\x7f", b"h2c",
    ]),
    st.binary(max_size=6),
)  # fmt: skip
_HEADERS = st.lists(st.tuples(_NAMES, st.sampled_from([b":", b": ", b""]), _VALUES).map(b"".join), max_size=5)


@st.composite
def _heads(draw: st.DrawFn) -> list[bytes]:
    """Heads of one connection: each like the one before, but for some lines."""
    first, headers = draw(_LINES), [b"Host: x", b"X-Id: 1", b"Content-Length: 3", *draw(_HEADERS)]
    heads = []
    for _ in range(draw(st.integers(2, 6))):
        heads.append(b"\r\n".join([first, *headers]) + b"\r\n\r\n")
        for _ in range(draw(st.integers(0, 3))):
            index = draw(st.integers(0, len(headers) - 1))
            name = headers[index].partition(b":")[0]
            changed = draw(
                st.one_of(st.builds(b"%b:%b".__mod__, st.tuples(st.just(name), _VALUES)), _HEADERS.map(b"".join))
            )
            headers = [*headers[:index], changed, *headers[index + 1 :]]
        if draw(st.integers(0, 9)) == 0:
            first = draw(_LINES)
    return heads


def _outcome(read: HeadReader | None, raw: bytes) -> Head | str:
    try:
        return read_head(raw) if read is None else read.read(raw)
    except ShoalError as error:
        return f"{type(error).__name__}: {error}"


@settings(max_examples=300, deadline=None)
@given(heads=_heads())
def test_a_head_is_read_the_same_whatever_came_before_it(heads: list[bytes]) -> None:
    reader = HeadReader()
    for raw in heads:
        assert _outcome(reader, raw) == _outcome(None, raw), raw


def test_headers_of_an_earlier_request_stay_as_they_were() -> None:
    reader = HeadReader()
    raw = b"POST / HTTP/1.1\r\nHost: x\r\nX-Id: %d\r\nContent-Length: %d\r\n\r\n"
    heads = [reader.read(raw % (number, number * 7)) for number in range(5)]
    assert [(head.headers[b"x-id"], head.length) for head in heads] == [(b"%d" % n, n * 7) for n in range(5)]
