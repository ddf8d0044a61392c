"""What is no request, or could be read in two ways: refused precisely, then closed."""

from __future__ import annotations

import logging
import re

import pytest

from tests.edge_agent.serving.http.device import BODY_LIMIT, Device, chunked, get, post

_SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


def _head(*lines: str, first: str = "POST /echo HTTP/1.1", host: str = "Host: x") -> bytes:
    return "\r\n".join([first, *([host] if host else []), *lines]).encode("latin-1") + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (_head("Content-Length: 5", "Content-Length: 5"), 400, "Content-Length"),
        (_head("Content-Length: 5", "Content-Length: 6"), 400, "Content-Length"),
        (_head("Content-Length: 5, 5"), 400, "Content-Length"),
        (_head("Content-Length: +5"), 400, "Content-Length"),
        (_head("Content-Length: -1"), 400, "Content-Length"),
        (_head("Content-Length: 0x5"), 400, "Content-Length"),
        (_head("Content-Length: 5 5"), 400, "Content-Length"),
        (_head("Content-Length:"), 400, "Content-Length"),
        (_head("Content-Length: 99999999999999999999999999"), 400, "Content-Length"),
        (_head("Content-Length: 5", "Transfer-Encoding: chunked"), 400, "Content-Length"),
        (_head("Transfer-Encoding: chunked", "Content-Length: 5"), 400, "Content-Length"),
        (_head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400, "transfer-encoding"),
        (_head("Transfer-Encoding: gzip, chunked"), 501, "transfer-encoding"),
        (_head("Transfer-Encoding: chunked, identity"), 400, "transfer-encoding"),
        (_head("Transfer-Encoding: xchunked"), 400, "transfer-encoding"),
        (_head("Transfer-Encoding : chunked"), 400, "header"),
        (_head("Transfer-Encoding: chunked", first="POST / HTTP/1.0"), 400, "transfer-encoding"),
        (_head(" folded: x"), 400, "header"),
        (_head("X: a", "\tfolded"), 400, "header"),
        (_head("no colon"), 400, "header"),
        (_head(": no name"), 400, "header"),
        (_head("X: nul\0"), 400, "header"),
        (_head("X: a\rb"), 400, "header"),
        (_head("X y: a"), 400, "header"),
        (_head(host=""), 400, "host"),
        (_head("Host: y"), 400, "host"),
        (_head(first="GET / HTTP/2.0"), 505, "2.0"),
        (_head(first="GET / HTTP/1.2"), 505, "1.2"),
        (_head(first="GET / ICE/1.0"), 400, "request line"),
        (_head(first="GET  / HTTP/1.1"), 400, "request line"),
        (_head(first="GET /"), 400, "request line"),
        (_head(first="GET / HTTP/1.1 "), 400, "request line"),
        (_head(first="get / HTTP/1.1"), 501, "method"),
        (_head(first="BREW / HTTP/1.1"), 501, "method"),
        (_head(first="CONNECT a:1 HTTP/1.1"), 501, "connect"),
        (_head(first="GET /ä HTTP/1.1"), 400, "request line"),
        (_head(first="GET /%FF HTTP/1.1"), 400, "utf-8"),
        (_head(first="GET /a#b HTTP/1.1"), 400, "fragment"),
        (_head(first="GET echo HTTP/1.1"), 400, "target"),
        (_head(first="GET ftp://x/ HTTP/1.1"), 400, "target"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "2.0"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "TLS"),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400, "line"),
        (_head(*(f"X-{number}: y" for number in range(101))), 431, "headers"),
        (_head("X: " + "y" * 20_000), 431, "16384 bytes"),
        (b"GET /" + b"y" * 20_000, 431, "16384 bytes"),
        (_head("Transfer-Encoding: chunked") + b"zz\r\n", 400, "chunk size"),
        (_head("Transfer-Encoding: chunked") + b"\r\n", 400, "chunk size"),
        (_head("Transfer-Encoding: chunked") + b"-5\r\nhello\r\n", 400, "chunk size"),
        (_head("Transfer-Encoding: chunked") + b"0x5\r\nhello\r\n", 400, "chunk size"),
        (_head("Transfer-Encoding: chunked") + b"5\nhello\r\n", 400, "carriage return"),
        (_head("Transfer-Encoding: chunked") + b"5\r\nhello!\r\n", 400, "longer than its size"),
        (_head("Transfer-Encoding: chunked") + b"5\r\nhell\r\n0\r\n\r\n", 400, "chunked body"),
        (_head("Transfer-Encoding: chunked") + b"5;" + b"x" * 2000 + b"\r\n", 400, "longer than 1024"),
        (_head("Transfer-Encoding: chunked") + b"FFFFFFFFFFFFFFFF\r\n", 413, "larger than the limit"),
        (_head("Transfer-Encoding: chunked") + b"F" * 17 + b"\r\n", 400, "chunk size"),
        (_head("Transfer-Encoding: chunked") + b"0\r\nno trailer\r\n\r\n", 400, "trailer"),
        (_head("Transfer-Encoding: chunked") + b"0\r\n" + b"X: y\r\n" * 3000, 400, "trailer"),
        (_head("Transfer-Encoding: chunked") + (b"1;" + b"x" * 1000 + b"\r\na\r\n") * 100, 400, "framing"),
    ],
)
def test_a_request_that_is_malformed_or_ambiguous_gets_a_precise_error_and_the_end(
    device: Device, data: bytes, status: int, text: str
) -> None:
    with device.connect() as client:
        client.send(data + _SMUGGLED)
        client.half_close()
        (answer,) = client.answers_until_closed()  # and never a second one, to what was smuggled behind it
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert re.search(re.escape(text), answer.error, re.IGNORECASE), answer.error
    assert all(request.path != "/smuggled" for request in device.routes.seen)
    device.routes.wait_released()


def test_empty_lines_before_a_request_mean_nothing(device: Device) -> None:
    with device.connect() as client:
        for prefix in (b"\r\n", b"\r\n\r\n\r\n"):
            assert client.ask(prefix + get("/echo")).status == 200


def test_a_body_over_the_limit_is_refused_before_it_is_read_and_seen_by_who_sends_first(device: Device) -> None:
    with device.connect() as client:
        client.send(post("/echo", bytes(BODY_LIMIT * 20)))  # sent whole before anything is read
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert "larger than the limit of 1000000 bytes" in answer.error
        assert client.is_closed()
    with device.connect() as client:
        client.send(chunked("/echo", *[bytes(90_000)] * 12))
        assert client.answer().status == 413
        assert client.is_closed()
    assert device.ask(post("/echo", bytes(BODY_LIMIT), "Connection: close"))[0].json()["size"] == BODY_LIMIT
    device.routes.wait_released()


def test_a_small_refused_body_is_skipped_and_the_connection_kept(device: Device) -> None:
    with device.connect() as client:
        for body in (b"", b"x" * 100, b"y" * 60_000):
            answer = client.ask(post("/forbidden", body))
            assert (answer.status, answer.error) == (403, "not for you")
            answer = client.ask(post("/busy", body))
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert client.ask(post("/echo", body)).json()["size"] == len(body)
        assert client.ask(post("/forbidden", b"", "Connection: close")).status == 403
        assert client.is_closed()
    with device.connect() as client:
        assert client.ask(post("/forbidden", b"z" * 500_000)).headers["connection"] == "close"
        assert client.is_closed()
    with device.connect() as client:
        assert client.ask(chunked("/forbidden", b"abc")).headers["connection"] == "close"
        assert client.is_closed()


def test_mistakes_of_ours_are_logged_with_their_traceback_and_end_nothing(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    with device.connect() as client:
        for path in ("/broken", "/broken/later", "/broken/admit"):
            caplog.clear()
            answer = client.ask(post(path, b"x" * 10))
            assert (answer.status, answer.error) == (500, "internal error: ZeroDivisionError; see the agent's log")
            assert "a mistake of ours" in caplog.text
            assert "Traceback" in caplog.text
            assert path in caplog.text
        answer = client.ask(get("/broken/header"))
        assert (answer.status, answer.error) == (500, "internal error: ValueError; see the agent's log")
        assert "x-evil" not in answer.headers
        assert client.ask(post("/refused", b"x")).error == "seen, and refused"
        assert client.ask(post("/echo", b"x")).status == 200
    device.routes.wait_released()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"GET /echo HT", "within its head"),
        (post("/echo", b"x" * 100)[:-1], "after 99 of 100 bytes"),
        (post("/echo", b"x" * 100_000)[:-70_000], "after 30000 of 100000 bytes"),
        (chunked("/echo", b"x" * 100)[:-5], "within its body"),
    ],
)
def test_a_truncated_request_is_told_so_where_somebody_still_listens(device: Device, data: bytes, text: str) -> None:
    with device.connect() as client:
        client.send(data)
        client.half_close()
        (answer,) = client.answers_until_closed()
    assert answer.status == 400
    assert text in answer.error
    assert device.routes.seen == []
    device.routes.wait_released()
