"""Tokens, claims and device secrets: created here, kept as digests, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from edge_agent.contract.enrolment import BrokerAddress, Enrolment, EnrolmentRequest, EnrolmentRoots
from edge_agent.contract.errors import MalformedRequest
from edge_agent.contract.messages import Hardware
from edge_agent.contract.names import is_name
from fleet_server.access.roles import Role
from fleet_server.access.tables import claims, device_secrets, tokens
from fleet_server.clock import Clock, now_ms
from fleet_server.database import Database
from fleet_server.errors import Conflict, Forbidden, NotFound
from fleet_server.upsert import upsert

SESSION_S = 7 * 86_400
LOGIN_S = 3_600
CLAIM_S = 3_600
_OVER_KEPT_MS = 86_400_000
_ANOTHER_CLAIM = "ask an administrator for a new one: shoal devices claim"

# (transaction, device, hardware, whether it was shut out before)
OnEnrolled = Callable[[sa.Connection, str, Hardware, bool], None]


class AccessService:
    """Who may do what.

    Args:
        fleet: Name of the fleet that devices join.
        roots: Gives the TUF roots (image, director) that a device is to trust from its enrolment on.
        on_enrolled: Called in the transaction of an enrolment, so that both hold or neither.
    """

    def __init__(
        self,
        db: Database,
        *,
        fleet: str,
        roots: Callable[[], tuple[str, str]],
        on_enrolled: OnEnrolled,
        clock: Clock = now_ms,
    ) -> None:
        self._db, self._fleet, self._roots, self._on_enrolled, self._clock = db, fleet, roots, on_enrolled, clock

    def create_token(self, role: Role, name: str) -> str:
        """A new token of the REST API; it is shown this once and cannot be read again."""
        return self._create(role, name, "api", None)

    def create_login(self, role: Role = Role.ADMIN, *, ttl_s: float = LOGIN_S) -> str:
        """A one-time token that a browser exchanges for a session."""
        return self._create(role, "login link", "login", ttl_s)

    def login(self, login: str) -> str | None:
        """A session token for a one-time login token; None where that one is unknown, used or expired."""
        with self._db.write() as connection:
            row = self._valid(connection, login, ("login",))
            if row is None:
                return None
            unused = sa.update(tokens).where(tokens.c.id == row.id, tokens.c.ended_at_ms.is_(None))
            if connection.execute(unused.values(ended_at_ms=self._clock())).rowcount == 0:
                return None  # where the database has several writers: another browser was quicker
            return self._insert(connection, Role(row.role), "browser", "session", SESSION_S)

    def logout(self, session: str) -> None:
        """End a session."""
        with self._db.write() as connection:
            row = self._valid(connection, session, ("session",))
            if row is not None:
                connection.execute(sa.update(tokens).where(tokens.c.id == row.id).values(ended_at_ms=self._clock()))

    def verify(self, token: str) -> Role | None:
        """The role of a valid API or session token, else None."""
        with self._db.read() as connection:
            row = self._valid(connection, token, ("api", "session"))
            return Role(row.role) if row is not None else None

    def name_of(self, token: str) -> str:
        """The name of a valid API token, else empty."""
        with self._db.read() as connection:
            row = self._valid(connection, token, ("api",))
            return str(row.name) if row is not None else ""

    def replace_token(self, role: Role, name: str) -> str:
        """A new token; the earlier ones of that name end with it."""
        with self._db.write() as connection:
            living = (tokens.c.name == name) & (tokens.c.kind == "api") & tokens.c.ended_at_ms.is_(None)
            connection.execute(sa.update(tokens).where(living).values(ended_at_ms=self._clock()))
            return self._insert(connection, role, name, "api", None)

    def tokens(self) -> list[dict[str, Any]]:
        """The API tokens that are valid now, without their secrets."""
        columns = (tokens.c.id, tokens.c.name, tokens.c.role, tokens.c.created_at_ms)
        with self._db.read() as connection:
            living = sa.select(*columns).where(tokens.c.kind == "api", tokens.c.ended_at_ms.is_(None))
            return [dict(row) for row in connection.execute(living.order_by(tokens.c.id)).mappings()]

    def revoke_token(self, token_id: int) -> None:
        """End a token.

        Raises:
            NotFound: There is no such valid token.
        """
        living = (tokens.c.id == token_id) & (tokens.c.kind == "api") & tokens.c.ended_at_ms.is_(None)
        with self._db.write() as connection:
            ended = connection.execute(sa.update(tokens).where(living).values(ended_at_ms=self._clock()))
            if ended.rowcount == 0:
                raise NotFound(f"there is no valid token {token_id}; `shoal tokens list` shows those there are")

    def create_claim(self, device: str | None = None, ttl_s: float = CLAIM_S) -> str:
        """A one-time token with which one device may enrol; bound to ``device`` where given.

        Raises:
            MalformedRequest: ``device`` is no name.
        """
        if device is not None:
            _check_device(device)
        claim = secrets.token_urlsafe(32)
        now = self._clock()
        row = {
            "sha256": _digest(claim),
            "device": device,
            "created_at_ms": now,
            "expires_at_ms": now + round(ttl_s * 1000),
        }
        with self._db.write() as connection:
            connection.execute(sa.insert(claims).values(row))
        return claim

    def roots(self) -> EnrolmentRoots:
        """The roots of trust that whoever enrols gets; they are public."""
        image_root, director_root = self._roots()
        return EnrolmentRoots(image_root=image_root, director_root=director_root)

    def enrol(self, request: EnrolmentRequest, *, server: str, broker: BrokerAddress) -> Enrolment:
        """Make a device a member of the fleet.

        Args:
            server, broker: Where this device reaches us.
        Raises:
            MalformedRequest: The device's name is none, or taken by us.
            Forbidden: The claim is unknown, used, expired, or bound to another device.
            Conflict: The device exists already and the claim is not bound to its name.
        """
        _check_device(request.device)
        secret = secrets.token_urlsafe(32)
        image_root, director_root = self._roots()
        with self._db.write() as connection:
            now = self._clock()
            claim = self._claim(connection, request, now)
            known = connection.execute(
                sa.select(device_secrets.c.revoked_at_ms).where(device_secrets.c.device == request.device)
            ).one_or_none()
            if known is not None and claim.device is None:
                raise Conflict(
                    f"device {request.device!r} is enrolled already; to replace it, claim it by name: "
                    f"shoal devices claim --device {request.device}"
                )
            # Where the database has several writers another enrolment may have used it since we looked.
            unused = sa.update(claims).where(claims.c.id == claim.id, claims.c.used_at_ms.is_(None))
            if connection.execute(unused.values(used_at_ms=now, used_by=request.device)).rowcount == 0:
                raise Forbidden(f"the claim token has been used already; {_ANOTHER_CLAIM}")
            values = {"sha256": _digest(secret), "enrolled_at_ms": now, "revoked_at_ms": None}
            upsert(connection, device_secrets, {"device": request.device}, values)
            was_revoked = known is not None and known.revoked_at_ms is not None
            self._on_enrolled(connection, request.device, request.hardware, was_revoked)
        return Enrolment(
            fleet=self._fleet,
            device=request.device,
            secret=secret,
            server=server,
            broker=broker,
            image_root=image_root,
            director_root=director_root,
        )

    def verify_device(self, device: str, secret: str) -> bool:
        """Whether ``secret`` is that of ``device``, and it is not revoked."""
        return self.device_of(secret) == device

    def device_of(self, secret: str) -> str | None:
        """The device whose secret this is, or None where there is none or it is revoked."""
        with self._db.read() as connection:
            row = connection.execute(
                sa.select(device_secrets).where(device_secrets.c.sha256 == _digest(secret))
            ).first()
        if row is None or row.revoked_at_ms is not None or not hmac.compare_digest(row.sha256, _digest(secret)):
            return None
        return str(row.device)

    def is_active(self, device: str) -> bool:
        """Whether a device of that name is enrolled and not revoked: what it sends is else to be ignored."""
        living = sa.select(device_secrets.c.device).where(
            device_secrets.c.device == device, device_secrets.c.revoked_at_ms.is_(None)
        )
        with self._db.read() as connection:
            return connection.scalar(living) is not None

    def revoke_device(self, device: str) -> None:
        """Ignore a device from now on; a claim bound to its name lets it come back.

        Raises:
            NotFound: There is no such device.
        """
        with self._db.write() as connection:
            one = sa.update(device_secrets).where(device_secrets.c.device == device)
            if connection.execute(one.values(revoked_at_ms=self._clock())).rowcount == 0:
                raise NotFound(f"there is no device {device!r}; `shoal devices list` shows those there are")

    def prune(self, now: int) -> None:
        """Delete sessions, login links and claims that have been over for a day; until then their errors are exact."""
        before = now - _OVER_KEPT_MS
        over = tokens.c.kind.in_(["session", "login"]) & (tokens.c.expires_at_ms < before)
        with self._db.write() as connection:
            connection.execute(sa.delete(tokens).where(over))
            connection.execute(sa.delete(claims).where(claims.c.expires_at_ms < before))

    def _claim(self, connection: sa.Connection, request: EnrolmentRequest, now: int) -> sa.Row[Any]:
        claim = connection.execute(sa.select(claims).where(claims.c.sha256 == _digest(request.claim))).first()
        if claim is None or not hmac.compare_digest(claim.sha256, _digest(request.claim)):
            raise Forbidden(f"the claim token is not known here; {_ANOTHER_CLAIM}")
        if claim.used_at_ms is not None:
            raise Forbidden(f"the claim token has been used already; {_ANOTHER_CLAIM}")
        if claim.expires_at_ms <= now:
            raise Forbidden(f"the claim token has expired; {_ANOTHER_CLAIM}")
        if claim.device is not None and claim.device != request.device:
            raise Forbidden(f"the claim token is bound to another device than {request.device!r}; {_ANOTHER_CLAIM}")
        return claim

    def _create(self, role: Role, name: str, kind: str, ttl_s: float | None) -> str:
        with self._db.write() as connection:
            return self._insert(connection, role, name, kind, ttl_s)

    def _insert(self, connection: sa.Connection, role: Role, name: str, kind: str, ttl_s: float | None) -> str:
        token = secrets.token_urlsafe(32)
        now = self._clock()
        connection.execute(
            sa.insert(tokens).values(
                name=name,
                role=role.value,
                kind=kind,
                sha256=_digest(token),
                created_at_ms=now,
                expires_at_ms=now + round(ttl_s * 1000) if ttl_s is not None else None,
            )
        )
        return token

    def _valid(self, connection: sa.Connection, token: str, kinds: tuple[str, ...]) -> sa.Row[Any] | None:
        row = connection.execute(
            sa.select(tokens).where(tokens.c.sha256 == _digest(token), tokens.c.kind.in_(kinds))
        ).first()
        if row is None or row.ended_at_ms is not None or not hmac.compare_digest(row.sha256, _digest(token)):
            return None
        if row.expires_at_ms is not None and row.expires_at_ms <= self._clock():
            return None
        return row


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _check_device(device: str) -> None:
    # "server" is the server's own user at the broker, "import" stands for rows that no device sent.
    if not is_name(device) or device in {"server", "import"}:
        raise MalformedRequest(
            f"device {device[:80]!r}: use 1 to 63 of a-z, 0-9, '-' and '_'; 'server' and 'import' are taken"
        )
