"""FastAPI dependencies that let a request pass only with the right token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from fleet_server.access.roles import Role
from fleet_server.access.service import AccessService
from fleet_server.errors import Forbidden, NotAuthenticated

SESSION_COOKIE = "shoal_session"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

_bearer = HTTPBearer(auto_error=False, description="A token as `shoal tokens create` prints it, or a device's secret.")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


class Guard:
    """What routes ask: ``Depends(guard.require(Role.VIEWER))`` or ``Depends(guard.require_download)``."""

    def __init__(self, service: AccessService) -> None:
        self.service = service

    def require(self, role: Role) -> Callable[..., Role]:
        """A dependency that gives the caller's role, and refuses one that may not do what ``role`` may.

        Raises:
            NotAuthenticated: No valid token (401).
            Forbidden: A lower role (403), or a cookie sent by another site's page.
        """

        def dependency(request: Request, bearer: Bearer) -> Role:
            found = self.role_of(request, bearer)
            if found is None:
                raise NotAuthenticated(
                    "give a valid token: Authorization: Bearer TOKEN (see `shoal tokens create --help`)"
                )
            if not found.allows(role):
                raise Forbidden(f"this needs the role {role.value}, the token has {found.value}")
            return found

        return dependency

    def require_download(self, request: Request, bearer: Bearer) -> str:
        """A dependency for what devices and trainers fetch: gives the device's name, or "" for a trainer or better.

        Raises:
            NotAuthenticated, Forbidden: Neither a device's secret nor such a token.
        """
        device = self.service.device_of(bearer.credentials) if bearer is not None else None
        if device is None:
            self.require(Role.TRAINER)(request, bearer)
        return device or ""

    def caller(self, bearer: Bearer) -> str:
        """A dependency that gives the name of the caller's API token; empty where a browser's session asks."""
        return self.service.name_of(bearer.credentials) if bearer is not None else ""

    def role_of(self, request: Request, bearer: HTTPAuthorizationCredentials | None) -> Role | None:
        """The role of the request's token or session cookie, or None.

        Raises:
            Forbidden: The cookie came with a request that another site's page made.
        """
        if bearer is not None:
            return self.service.verify(bearer.credentials)
        session = request.cookies.get(SESSION_COOKIE)
        if session is None:
            return None
        # SameSite=Strict keeps the cookie at home already; this holds for sibling sites and older browsers too.
        if request.method not in _SAFE and request.headers.get("sec-fetch-site", "same-origin") not in {
            "same-origin",
            "none",
        }:
            raise Forbidden("the request comes from another site's page; use the console itself")
        return self.service.verify(session)

    def role_in(self, request: Request) -> Role | None:
        """The role of the request's session cookie, or None: for pages, which send people to the login instead."""
        return self.role_of(request, None)
