"""The pages for people: they stand alone, and say nothing to who may not know."""

from __future__ import annotations

import base64
import hashlib
import re

from tests.fakes.serving_device import Device


def test_the_page_brings_all_it_needs_and_is_small(shared: Device) -> None:
    status, headers, body = shared.ask("GET", "/docs")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert len(body) < 25_000
    text = body.decode()
    assert not re.search(r"(src|href)=\"(https?:)?//", text)
    assert "innerHTML" not in text  # what the device says is text, never markup


def test_the_policy_names_the_very_script_and_style(shared: Device) -> None:
    for path in ("/docs", "/", "/docs/?x=1"):
        _, headers, body = shared.ask("GET", path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        for tag in (b"script", b"style"):
            for block in re.findall(b"<" + tag + b">(.*?)</" + tag + b">", body, re.DOTALL):
                assert base64.b64encode(hashlib.sha256(block).digest()).decode() in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_the_front_page_leads_to_what_there_is(shared: Device) -> None:
    body = shared.ask("GET", "/")[2].decode()
    for link in re.findall(r'href="(/[^"]*)"', body):
        assert shared.ask("GET", link)[0] == 200
    assert shared.ask("HEAD", "/")[2] == b""
