"""The pages for people: ``/docs`` shows ``/openapi.json`` and lets one try it, ``/`` says where things are.

Nothing on them comes from elsewhere, and nothing in them is of this device before the script has asked for it: they
need no access of their own.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path

from edge_agent.serving.access import App
from edge_agent.serving.http.message import HttpRequest, HttpResponse
from edge_agent.serving.rest.route import Target

_FILE = Path(__file__).with_name("page.html")
_HTML = b"text/html; charset=utf-8"
_INDEX = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Shoal device</title><link rel="icon" href="data:,">
<style>body{font:16px/1.6 system-ui,sans-serif;max-width:36rem;margin:3rem auto;padding:0 1.25rem}
h1{font-size:1.4rem}li{margin:.3rem 0}</style>
<h1>Shoal device</h1>
<p>This device runs models and answers by the Open Inference Protocol v2.</p>
<ul>
<li><a href="/docs">The API</a>: its models, with a form to try them</li>
<li><a href="/openapi.json">openapi.json</a>: for generated clients</li>
<li><a href="/v2/health/ready">Health</a>, <a href="/v2">server</a>, <a href="/v2/models/stats">statistics</a></li>
<li><a href="/metrics">Metrics</a>: for Prometheus</li>
</ul></html>
"""


def index(request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG001 - a route's
    """``GET /``."""
    return HttpResponse(200, _INDEX, _HTML, _security(_INDEX))


def docs(request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG001 - a route's
    """``GET /docs``; the file is read once."""
    body, headers = _docs()
    return HttpResponse(200, body, _HTML, headers)


@functools.cache
def _docs() -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    body = _FILE.read_bytes()
    return body, _security(body)


@functools.cache
def _security(body: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """A content security policy that lets run and apply what is in the page itself, by its hash, and nothing else."""
    script, style = (_hashes(tag, body) for tag in (b"script", b"style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    return (
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    )


def _hashes(tag: bytes, body: bytes) -> str:
    blocks: list[bytes] = re.findall(b"<" + tag + b">(.*?)</" + tag + b">", body, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(block).digest()).decode() for block in blocks]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
