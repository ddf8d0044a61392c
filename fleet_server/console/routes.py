"""The console's addresses: the page, its live part, and the files that it loads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request, Response, status
from fastapi.responses import HTMLResponse, RedirectResponse

from fleet_server.access.guard import Guard
from fleet_server.access.roles import Role
from fleet_server.console.assets import Assets
from fleet_server.console.rendering import Pages
from fleet_server.console.service import ConsoleService
from fleet_server.errors import NotAuthenticated

# No inline script or style, nothing from elsewhere; Pico draws its small icons from data: addresses.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Name = Annotated[str, Query(max_length=63)]


def routes(service: ConsoleService, guard: Guard) -> APIRouter:
    """The console's routes; what they show is read through ``service``, who may see it says ``guard``."""
    router = APIRouter(include_in_schema=False)
    assets = Assets()
    pages = Pages(assets)

    def may_look(request: Request) -> bool:
        role = guard.role_in(request)
        return role is not None and role.allows(Role.VIEWER)

    @router.get("/")
    def page(request: Request, model: Name = "", span: Name = "") -> Response:
        if not may_look(request):
            return RedirectResponse("/login", status_code=status.HTTP_303_SEE_OTHER, headers=HEADERS)
        return HTMLResponse(pages.page(service.read(model, span), server=_server(request)), headers=HEADERS)

    @router.get("/console/live")
    def live(request: Request, model: Name = "", span: Name = "") -> Response:
        if not may_look(request):
            raise NotAuthenticated("log in to the console again: shoal login")
        return HTMLResponse(pages.live(service.read(model, span), server=_server(request)), headers=HEADERS)

    _of_one_device(router, service, pages, may_look)

    @router.get("/api/docs")
    def reference() -> Response:
        return HTMLResponse(pages.reference(), headers=HEADERS)

    @router.get("/static/{name:path}")
    def static(request: Request, name: str) -> Response:
        answer = assets.answer(name, request)
        if answer is None:
            raise HTTPException(status.HTTP_404_NOT_FOUND, f"there is no file {name!r} here")
        return answer

    return router


def _of_one_device(
    router: APIRouter, service: ConsoleService, pages: Pages, may_look: Callable[[Request], bool]
) -> None:
    @router.get("/devices/{device}")
    def device_page(request: Request, device: str) -> Response:
        if not may_look(request):
            return RedirectResponse("/login", status_code=status.HTTP_303_SEE_OTHER, headers=HEADERS)
        return HTMLResponse(pages.device(service.device(device), server=_server(request)), headers=HEADERS)

    @router.get("/console/devices/{device}")
    def device_live(request: Request, device: str) -> Response:
        if not may_look(request):
            raise NotAuthenticated("log in to the console again: shoal login")
        return HTMLResponse(pages.device_live(service.device(device), server=_server(request)), headers=HEADERS)


def _server(request: Request) -> str:
    return str(request.base_url).rstrip("/")
