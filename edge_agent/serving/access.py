"""Who may use the API, for which models, and how often; the same for every way to reach it.

With no application named in the settings, whoever is on this machine may do everything, and nobody else anything. Once
one is named, an application is known by what it shows, in this order:

1. a token, which must be a known one wherever it is given: a wrong token is never overlooked;
2. on unix sockets the user that its process runs as, then the group (where an entry names both, both must fit);
3. ``local``: whoever else comes from this machine.

The kernel tells the *primary* user and group of the process that connected (``SO_PEERCRED``); its supplementary groups
are not known, so an entry with ``gid`` means programs started with that group (``Group=`` of a systemd unit, ``sg``).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Sequence

from edge_agent.config import AppSettings
from edge_agent.contract.errors import ConfigurationError, Forbidden, QuotaExceeded, Unauthenticated
from edge_agent.contract.names import is_name
from edge_agent.serving.peer import Peer, Transport

LOCAL = "local"
_EVERY_MODEL = "*"
# Who is known once is found again by one look-up; the keys are known users and tokens, so few.
_REMEMBERED = 1024


class App:
    """One application: what it may do, and what it has done; made by :class:`Access`.

    Args:
        requests: Requests it was let in with; ``forbidden`` and ``over_quota`` those that were refused.
    """

    __slots__ = ("_models", "_quota", "control", "forbidden", "name", "over_quota", "requests")

    def __init__(self, settings: AppSettings, clock: Callable[[], float]) -> None:
        self.name = settings.name
        self.control = settings.control
        self._models = None if _EVERY_MODEL in settings.models else frozenset(settings.models)
        self._quota = (
            _Quota(settings.requests_per_s, settings.burst, clock) if settings.requests_per_s is not None else None
        )
        self.requests = self.forbidden = self.over_quota = 0

    def permits(self, model: str) -> bool:
        """Whether it may ask this model, and hear of it."""
        return self._models is None or model in self._models

    def enter(self, model: str | None, *, control: bool) -> None:
        """See :meth:`Access.enter`."""
        if control and not self.control:
            self.forbidden += 1
            raise Forbidden(
                f"application '{self.name}' may not load or unload models, nor register shared memory: "
                "control = true under its [[api.apps]] in the agent's settings would let it"
            )
        if model is not None and self._models is not None and model not in self._models:
            self.forbidden += 1
            raise Forbidden(
                f"application '{self.name}' may not ask model '{model:.100}'; it may ask: "
                f"{', '.join(sorted(self._models)) or 'none'} (models under its [[api.apps]] in the agent's settings)"
            )
        if self._quota is not None:
            wait_s = self._quota.take()
            if wait_s > 0.0:
                self.over_quota += 1
                raise QuotaExceeded(
                    f"application '{self.name}' asks more than {self._quota.per_s:g} times a second (requests_per_s "
                    f"under its [[api.apps]] in the agent's settings): ask again in {wait_s:.2g} s",
                    retry_after_s=wait_s,
                )
        self.requests += 1

    def leave(self) -> None:
        """Take back one :meth:`enter`: the request comes in again on another way."""
        if self._quota is not None:
            self._quota.give_back()
        self.requests -= 1


class Access:
    """Tells applications apart and holds them to what they may; every method may be called from any thread.

    Args:
        apps: As in the settings.
        clock: Seconds that never go back.
    Attributes:
        apps: All of them. ``stranger``: who is not known, for what needs no access. ``unknown``: how often one came.
    Raises:
        ConfigurationError: An application can never be recognised, or two are recognised by the same.
    """

    def __init__(self, apps: Sequence[AppSettings], *, clock: Callable[[], float] = time.monotonic) -> None:
        _check(apps)
        everyone = AppSettings(name=LOCAL, local=True, control=True)
        self._open = not apps
        self.apps = tuple(App(settings, clock) for settings in (apps or (everyone,)))
        known = list(zip(apps or (everyone,), self.apps, strict=True))
        self._tokens = [(one.token_sha256, app) for one, app in known if one.token_sha256 is not None]
        self._users = {(one.uid, one.gid): app for one, app in known if one.uid is not None or one.gid is not None}
        self._local = next((app for one, app in known if one.local), None)
        self.stranger = App(AppSettings(name="stranger", models=()), clock)
        self._found: dict[tuple[int | None, int | None, bool, str | None], App] = {}
        self.unknown = 0

    @property
    def has_tokens(self) -> bool:
        """Whether some application is known by a token."""
        return bool(self._tokens)

    @property
    def needs_token(self) -> bool:
        """Whether a TCP client on this machine must bring a token."""
        return self._local is None

    def identify(self, peer: Peer, token: str | None) -> App:
        """The application at the other end.

        Args:
            token: What it showed as a bearer token; None where it showed none.
        Raises:
            Unauthenticated: Nobody here knows it.
        """
        app = self.recognised(peer, token)
        if app is None:
            self.unknown += 1
            raise Unauthenticated(self._unknown_text(peer, token))
        return app

    def recognised(self, peer: Peer, token: str | None) -> App | None:
        """As :meth:`identify`; None where nobody knows it, which is not counted."""
        if self._open and peer.loopback:
            return self.apps[0]
        key = (peer.uid, peer.gid, peer.loopback, token)
        # Looked up by the token itself: Python's string hash is keyed, so the time tells nothing about other tokens.
        app = self._found.get(key)
        if app is None:
            app = self._recognised(peer, token)
            if app is None:
                return None
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            self._found[key] = app
        return app

    def enter(self, app: App, model: str | None, *, control: bool = False) -> None:
        """Let one request of ``app`` in, and count it.

        Args:
            model: The model that it is about; None for none.
            control: Whether it loads or unloads models, or registers shared memory.
        Raises:
            Forbidden: It may not do this.
            QuotaExceeded: It asks too often.
        """
        app.enter(model, control=control)

    def _recognised(self, peer: Peer, token: str | None) -> App | None:
        if self._open:
            return self._local if peer.loopback else None
        if token is not None:
            return self._by_token(token)
        return self._by_user(peer) or (self._local if peer.loopback else None)

    def _by_token(self, token: str) -> App | None:
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        found: App | None = None
        for expected, app in self._tokens:  # all of them, each in constant time
            if hmac.compare_digest(digest, expected):
                found = app
        return found

    def _by_user(self, peer: Peer) -> App | None:
        if peer.uid is None:
            return None
        users = self._users
        return users.get((peer.uid, peer.gid)) or users.get((peer.uid, None)) or users.get((None, peer.gid))

    def _unknown_text(self, peer: Peer, token: str | None) -> str:
        if token is not None:
            return (
                "nobody here has this token; token_sha256 under [[api.apps]] in the agent's settings says who has which"
            )
        if peer.uid is not None:
            known = (
                f"user {peer.uid}, group {peer.gid} is no application here: name its uid or gid under [[api.apps]] in "
                "the agent's settings"
            )
            has_tokens = peer.transport is not Transport.FRAMES
            return f"{known}, or send a token: Authorization: Bearer TOKEN" if has_tokens else known
        if self._open:
            return "only programs on this machine may ask: the agent's settings name no application ([[api.apps]])"
        return (
            "this needs a token of an application under [[api.apps]] in the agent's settings: "
            "Authorization: Bearer TOKEN"
        )


class _Quota:
    """A token bucket: full at first, refilled at a steady rate."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float]) -> None:
        self.per_s = per_s
        self._size, self._clock = float(burst), clock
        self._left, self._at = self._size, clock()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take one request out; 0, or the seconds until there is one."""
        with self._lock:
            now = self._clock()
            self._left = min(self._size, self._left + (now - self._at) * self.per_s)
            self._at = now
            if self._left >= 1.0:
                self._left -= 1.0
                return 0.0
            return (1.0 - self._left) / self.per_s

    def give_back(self) -> None:
        """Put one request back that was taken out."""
        with self._lock:
            self._left = min(self._size, self._left + 1.0)


def check_reach(host: str, *, unix_sockets: bool, apps: Sequence[AppSettings]) -> None:
    """Refuse settings that would let strangers in, or that keep an application out for good.

    Args:
        host: Address of the TCP ports; empty for none.
        unix_sockets: Whether there is a unix socket for HTTP or frames.
    Raises:
        ConfigurationError: There is no such address; it is reached from other machines, and no application has a
            token; or an application is known by its user on a device without unix sockets.
    """
    if host and not is_loopback(host) and not any(app.token_sha256 for app in apps):
        try:
            socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(
                f"[api] host = {host!r} is no address, and no name that is known here ({error}): give an address of "
                "this machine, such as 127.0.0.1"
            ) from error
        raise ConfigurationError(
            f"[api] host = {host!r} is reached from other machines, and no application has a token: listen on "
            "127.0.0.1, or give each application one: TOKEN=$(openssl rand -hex 32), then under [[api.apps]] "
            "token_sha256 = the first word of `printf %s $TOKEN | sha256sum`"
        )
    for app in apps:
        if not unix_sockets and app.token_sha256 is None and not app.local:
            raise ConfigurationError(
                f"[[api.apps]] '{app.name}' is known by user or group only, which unix sockets tell, and there is "
                "none: set unix_socket or frames_socket under [api], or give it a token_sha256"
            )


def bearer_token(authorization: str) -> str | None:
    """The token in credentials (RFC 6750, section 2.1); None where they are of another scheme: a proxy's own."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def is_loopback(host: str) -> bool:
    """Whether an address, or every address of a name, is on this machine alone."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        pass
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def _check(apps: Sequence[AppSettings]) -> None:
    seen: dict[tuple[str, object], str] = {}
    for app in apps:
        marks: list[tuple[str, object]] = [("name", app.name)]
        if app.token_sha256 is not None:
            marks.append(("token_sha256", app.token_sha256))
        if app.uid is not None or app.gid is not None:
            marks.append(("uid and gid", (app.uid, app.gid)))
        if app.local:
            marks.append(("local", True))
        if len(marks) == 1:
            raise ConfigurationError(
                f"[[api.apps]] '{app.name}': nothing tells this application: give it token_sha256, uid, gid or "
                "local = true"
            )
        for mark in marks:
            if mark in seen:
                raise ConfigurationError(
                    f"[[api.apps]] '{seen[mark]}' and '{app.name}' have the same {mark[0]}: each application needs "
                    "its own"
                )
            seen[mark] = app.name
        strange = [model for model in app.models if model != _EVERY_MODEL and not is_name(model)]
        if strange:
            raise ConfigurationError(
                f"[[api.apps]] '{app.name}': no model can be called {strange[0]!r}; '*' stands for all"
            )
