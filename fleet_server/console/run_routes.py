"""Addresses of the pages of runs, and their live parts."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request, Response, status
from fastapi.responses import HTMLResponse, RedirectResponse

from fleet_server.access.guard import Guard
from fleet_server.access.roles import Role
from fleet_server.console.assets import Assets
from fleet_server.console.rendering import Pages
from fleet_server.console.routes import HEADERS
from fleet_server.console.run_pages import RunPages
from fleet_server.errors import NotAuthenticated


def routes(service: RunPages, guard: Guard) -> APIRouter:
    """The routes; what they show is read through ``service``, who may see it says ``guard``."""
    router, pages = APIRouter(include_in_schema=False), Pages(Assets())

    def answer(request: Request, render: Callable[[str], str], *, live: bool) -> Response:
        role = guard.role_in(request)
        if role is None or not role.allows(Role.VIEWER):
            if live:
                raise NotAuthenticated("log in to the console again: shoal login")
            return RedirectResponse("/login", status_code=status.HTTP_303_SEE_OTHER, headers=HEADERS)
        return HTMLResponse(render(str(request.base_url).rstrip("/")), headers=HEADERS)

    @router.get("/runs")
    def runs(request: Request) -> Response:
        return answer(request, lambda server: pages.runs(service.list(), server=server), live=False)

    @router.get("/console/runs")
    def runs_live(request: Request) -> Response:
        return answer(request, lambda server: pages.runs(service.list(), server=server, live=True), live=True)

    @router.get("/runs/{run}")
    def one(request: Request, run: str) -> Response:
        return answer(request, lambda server: pages.run(service.one(run), server=server), live=False)

    @router.get("/console/runs/{run}")
    def one_live(request: Request, run: str) -> Response:
        return answer(request, lambda server: pages.run(service.one(run), server=server, live=True), live=True)

    return router
