"""What web pages may do: nothing, unless the settings name their origin.

A browser on the device, or on a machine that a port is forwarded to, is a program of this machine to the agent,
whatever page it shows. So beside CORS (Fetch standard, 3.2), which keeps a page from *reading* answers, a request
without a token is refused where a page of somewhere else had it sent:

- it names an ``Origin`` that is neither allowed nor this API's own page: forms and scripts may *send* without CORS;
- its ``Host`` is a name out of the public name space: by DNS rebinding a page's own name may point here.

Credentials in the browser's sense (cookies) play no part; a token stands in ``Authorization``, which no page can guess.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from edge_agent.contract.errors import ConfigurationError, Forbidden
from edge_agent.serving.http.message import HttpRequest, HttpResponse
from edge_agent.serving.peer import Transport

_ANY = "*"
_METHODS = b"GET, HEAD, POST"
_HEADERS = b"authorization, content-type, content-encoding, inference-header-content-length"
_EXPOSED = b"inference-header-content-length, retry-after, allow"
_MAX_AGE_S = b"600"
# Names that no public DNS server answers for.
_PRIVATE = ("localhost", ".localhost", ".local", ".internal", ".lan", ".home.arpa")
_REMEMBERED = 256
_TCP = Transport.TCP  # an enum's member costs a look-up each time
Headers = tuple[tuple[bytes, bytes], ...]


class Origins:
    """Origins of web pages that may ask.

    Args:
        allowed: As in the settings: ``https://app.example:8443``; empty for none, ``*`` for any.
    Attributes:
        enabled: Whether some origin is allowed.
    Raises:
        ConfigurationError: One of them is no origin.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        for origin in allowed:
            _check(origin)
        self._any = _ANY in allowed
        self.enabled = bool(allowed)
        self._allowed = frozenset(origin.encode() for origin in allowed)
        self._named = frozenset(urlsplit(origin).hostname or "" for origin in allowed if origin != _ANY)
        self._hosts: dict[bytes, bool] = {}

    def permits(self, origin: bytes) -> bool:
        """Whether pages of ``origin`` may ask and read."""
        return self._any or origin in self._allowed

    def guard(self, request: HttpRequest) -> None:
        """Refuse a request without a token that a page of somewhere else had a browser send.

        Raises:
            Forbidden: It did.
        """
        headers = request.headers
        origin = headers.get(b"origin")
        if request.peer.transport is not _TCP:  # out of a browser's reach, unless something forwards to it
            if origin is None:
                return
        elif not self._is_ours(host := headers.get(b"host", b"")):
            raise Forbidden(
                f"Host {_shown(host)} is a public name, and a request without a token must come from this machine: ask "
                "by address or as localhost, send a token, or name the origin in cors_origins under [api]"
            )
        if origin is None or request.method in ("GET", "HEAD") or self.permits(origin):
            return
        if not _same_host(origin, headers.get(b"host", b"")):
            raise _not_allowed(origin)

    def answer_headers(self, request: HttpRequest) -> Headers:
        """What an answer says to the browser; nothing where no origin is allowed, or the request names none."""
        if not self.enabled:
            return ()
        origin = request.headers.get(b"origin")
        vary = () if self._any else ((b"vary", b"Origin"),)
        if origin is None or not self.permits(origin):
            return vary
        allow = b"*" if self._any else origin
        return ((b"access-control-allow-origin", allow), (b"access-control-expose-headers", _EXPOSED), *vary)

    def preflight(self, request: HttpRequest) -> HttpResponse | None:
        """The answer to a preflight (Fetch standard, 3.2.2), or None where the request is none.

        It lacks what every answer to a page says: :meth:`answer_headers`.

        Raises:
            Forbidden: It asks for an origin that is not allowed.
        """
        if request.method != "OPTIONS" or b"access-control-request-method" not in request.headers:
            return None
        origin = request.headers.get(b"origin")
        if origin is None:
            return None
        if not self.permits(origin):
            raise _not_allowed(origin)
        granted = (
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", _HEADERS),
            (b"access-control-max-age", _MAX_AGE_S),
        )
        return HttpResponse(204, headers=granted)

    def _is_ours(self, host: bytes) -> bool:
        known = self._hosts.get(host)
        if known is None:
            if len(self._hosts) >= _REMEMBERED:
                self._hosts.clear()
            known = self._hosts[host] = self._names_this_machine(host)
        return known

    def _names_this_machine(self, host: bytes) -> bool:
        name = _hostname(host.decode("latin-1"))
        return name in self._named or "." not in name or name.endswith(_PRIVATE) or _is_address(name)


def _not_allowed(origin: bytes) -> Forbidden:
    return Forbidden(
        f"pages of {_shown(origin)} may not ask this device: name the origin in cors_origins under [api] in the "
        "agent's settings"
    )


def _hostname(host: str) -> str:
    """Without the port, in lowercase, without the root's dot; of an IPv6 address without the brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _same_host(origin: bytes, host: bytes) -> bool:
    """Whether the page came from the address that it asks: the API's own page."""
    scheme, separator, rest = origin.partition(b"://")
    return bool(separator) and scheme in (b"http", b"https") and rest == host


def _shown(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))


def _check(origin: str) -> None:
    if origin == _ANY:
        return
    try:
        parts = urlsplit(origin)
        plain = f"{parts.scheme}://{parts.netloc}"
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and plain == origin
    except ValueError:
        fits = False
    if not fits or "@" in origin or origin != origin.lower():
        raise ConfigurationError(
            f"[api] cors_origins: {origin!r} is no origin: write it as https://app.example:8443, in lowercase, "
            "with no path and no slash at its end"
        )
