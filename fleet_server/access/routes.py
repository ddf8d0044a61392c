"""REST: enrolment, claims, tokens, and a browser's login."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Cookie, Depends, Path, Request, Response, status
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import BaseModel, Field

from edge_agent.contract.enrolment import BrokerAddress, Enrolment, EnrolmentRequest, EnrolmentRoots
from fleet_server.access.guard import SESSION_COOKIE, Guard
from fleet_server.access.roles import Role
from fleet_server.access.service import CLAIM_S, SESSION_S, AccessService
from fleet_server.json_answers import Answer, describe
from fleet_server.json_requests import Body, RequestBody, decode, describe_body


class ClaimRequest(RequestBody):
    """What a claim token is to allow."""

    device: str | None = Field(None, description="Only a device of this name may use it.", examples=["camera-7"])
    ttl_s: float = Field(CLAIM_S, gt=0, le=30 * 86_400, description="Seconds until it expires.")


class Claim(BaseModel):
    """A one-time claim token."""

    claim: str
    device: str | None
    ttl_s: float


class TokenRequest(RequestBody):
    """A token to create."""

    role: Role
    name: str = Field(
        min_length=1, max_length=100, description="Whose it is, for the list.", examples=["nightly trainer"]
    )


class Token(BaseModel):
    """A token, shown once."""

    token: str
    role: Role
    name: str


class TokenInfo(BaseModel):
    """A token without its secret."""

    id: int
    name: str
    role: Role
    created_at_ms: int


class Login(BaseModel):
    """A one-time link into the console."""

    url: str


def routes(
    service: AccessService, guard: Guard, *, addresses: Callable[[Request], tuple[str, BrokerAddress]]
) -> APIRouter:
    """The routes of access.

    Args:
        addresses: Where the caller of a request reaches this server and its broker.
    """
    router = APIRouter(tags=["access"])
    admin = Depends(guard.require(Role.ADMIN))
    _enrolment(router, service, addresses)

    @router.post("/api/v1/claims", status_code=status.HTTP_201_CREATED, dependencies=[admin])
    def create_claim(request: ClaimRequest) -> Claim:
        """Create a one-time token with which a device enrols."""
        claim = service.create_claim(request.device, request.ttl_s)
        return Claim(claim=claim, device=request.device, ttl_s=request.ttl_s)

    @router.post("/api/v1/tokens", status_code=status.HTTP_201_CREATED, dependencies=[admin])
    def create_token(request: TokenRequest) -> Token:
        """Create a token of the REST API; it cannot be read again."""
        return Token(token=service.create_token(request.role, request.name), role=request.role, name=request.name)

    @router.get("/api/v1/tokens", dependencies=[admin])
    def list_tokens() -> list[TokenInfo]:
        """List the valid tokens, without their secrets."""
        return [TokenInfo(**one) for one in service.tokens()]

    @router.delete("/api/v1/tokens/{token_id}", status_code=status.HTTP_204_NO_CONTENT, dependencies=[admin])
    def revoke_token(token_id: Annotated[int, Path(ge=1, lt=1 << 63)]) -> None:
        """End a token."""
        service.revoke_token(token_id)

    @router.post("/api/v1/logins", status_code=status.HTTP_201_CREATED, dependencies=[admin])
    def create_login(request: Request) -> Login:
        """Create a one-time link that logs a browser into the console."""
        return Login(url=f"{addresses(request)[0]}/login?token={service.create_login()}")

    _browser(router, service)
    return router


def _enrolment(
    router: APIRouter, service: AccessService, addresses: Callable[[Request], tuple[str, BrokerAddress]]
) -> None:
    example = {"claim": "p8Zk...", "device": "camera-7", "hardware": {"architecture": "aarch64", "system": "Linux"}}

    @router.get("/api/v1/enrol/roots", responses=describe(EnrolmentRoots))
    def roots() -> Answer:
        """Show the roots of trust that a device gets, so that it can hold its own against them before it claims."""
        return Answer(service.roots())

    @router.post(
        "/api/v1/enrol",
        openapi_extra=describe_body(EnrolmentRequest, example=example),
        responses=describe(Enrolment),
    )
    def enrol(request: Request, body: Body) -> Answer:
        """Join the fleet: a one-time claim token for an identity, a secret and the roots of trust."""
        server, broker = addresses(request)
        answer = Answer(service.enrol(decode(body, EnrolmentRequest), server=server, broker=broker))
        answer.headers["Cache-Control"] = "no-store"
        return answer


def _browser(router: APIRouter, service: AccessService) -> None:
    @router.get("/login", include_in_schema=False)
    def login(request: Request, token: str = "") -> Response:
        session = service.login(token) if token else None
        if session is None:
            return HTMLResponse(_LOGIN_HELP, status_code=status.HTTP_401_UNAUTHORIZED)
        answer = RedirectResponse(
            "/", status_code=status.HTTP_303_SEE_OTHER, headers={"Referrer-Policy": "no-referrer"}
        )
        secure = request.url.scheme == "https"
        answer.set_cookie(SESSION_COOKIE, session, max_age=SESSION_S, httponly=True, samesite="strict", secure=secure)
        return answer

    @router.post("/logout", include_in_schema=False)
    def logout(shoal_session: Annotated[str | None, Cookie()] = None) -> Response:
        if shoal_session is not None:
            service.logout(shoal_session)
        answer = RedirectResponse("/login", status_code=status.HTTP_303_SEE_OTHER)
        answer.delete_cookie(SESSION_COOKIE)
        return answer


_LOGIN_HELP = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Shoal: log in</title>
<body style="font-family: system-ui; max-width: 40rem; margin: 4rem auto; padding: 0 1rem">
<h1>Log in</h1><p>Login links work once. Make a new one on the server's machine:</p>
<pre>shoal login --data DIR</pre><p>and open the address that it prints.</p></body></html>
"""
