"""The HTTP application: every feature's routes under one roof, and what operators probe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet_server import __version__, http_errors
from fleet_server.database import Database
from fleet_server.http_limits import BodyLimit
from fleet_server.metrics import ServerMetrics

_TAGS = [
    {"name": "access", "description": "Enrolment, claim tokens, API tokens, browser logins."},
    {"name": "devices", "description": "What each device should be, what it is, and its events."},
    {"name": "models", "description": "Released packages, their evaluation, the champion."},
    {"name": "rollouts", "description": "Waves behind a health gate."},
    {"name": "runs", "description": "Training, batch and upkeep runs, and the worker that claims them."},
    {"name": "schedules", "description": "When models are trained."},
    {"name": "monitoring", "description": "Drift, harm, alerts."},
    {"name": "ingest", "description": "How far the devices' streams have come, and what could not be taken."},
    {"name": "samples", "description": "What is in the lake."},
    {"name": "predictions", "description": "Answers of batch jobs, by key."},
    {"name": "labels", "description": "Live accuracy, by the labels of the devices' requests."},
    {"name": "updates", "description": "Signed metadata and files, for devices and the publisher."},
    {"name": "operations", "description": "Health and metrics of the server itself."},
]
_DESCRIPTION = """The fleet server of Shoal.

Give a token with every request: `Authorization: Bearer TOKEN`. An administrator's lies in the server's data folder, in
`admin.token`; `shoal tokens create` makes more. Errors are `{"error": "..."}`. Times are Unix milliseconds.
"""
_ERROR = {
    "description": "400 what is asked is wrong, 401 no valid token, 403 the token's role is too low, 404 there is no "
    "such thing, 409 not now, 413 too large, 503 try again later.",
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
        }
    },
}
_log = logging.getLogger(__name__)


class _Api(FastAPI):
    """Describes errors as they are: FastAPI's own description has a 422 that `http_errors` never answers."""

    def openapi(self) -> dict[str, Any]:
        """The description, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for methods in document["paths"].values():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
                    operation["responses"]["default"] = {"$ref": "#/components/responses/Error"}
            document["components"]["responses"] = {"Error": _ERROR}
            for unused in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(unused, None)
        return super().openapi()


def build_app(
    routers: Iterable[APIRouter], *, db: Database, metrics: ServerMetrics, broker_connected: Callable[[], bool]
) -> FastAPI:
    """The application."""
    app = _Api(
        title="Shoal",
        version=__version__,
        summary="Runs machine-learning models on fleets of edge devices and keeps them right.",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # the console has a page for it that loads nothing from elsewhere
        redoc_url=None,
        license_info={"name": "Apache-2.0"},
    )
    http_errors.install(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(_Counting, answered=metrics.request_answered)
    for router in routers:
        app.include_router(router)
    app.include_router(_operations(db, metrics, broker_connected))
    return app


def _operations(db: Database, metrics: ServerMetrics, broker_connected: Callable[[], bool]) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/healthz")
    def healthz() -> JSONResponse:
        """Tell whether the server works: 200, or 503 and what does not."""
        parts: dict[str, Any] = {"database": True, "broker": broker_connected()}
        try:
            with db.read() as connection:
                connection.execute(sa.text("SELECT 1"))
        except sa.exc.SQLAlchemyError as error:
            _log.error("the database does not answer: %s", error)
            parts["database"] = (
                "does not answer; the server's log says why"  # anybody may ask, and the error names hosts
            )
        healthy = all(value is True for value in parts.values())
        return JSONResponse({"status": "ok" if healthy else "failing", **parts}, status_code=200 if healthy else 503)

    @router.get("/metrics", response_class=Response)
    def prometheus() -> Response:
        """Metrics of the server in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


class _Counting:
    """Counts answers. Plain ASGI, so that streams pass through untouched."""

    def __init__(self, app: ASGIApp, answered: Callable[[str, int], None]) -> None:
        self._app, self._answered = app, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answered(scope["method"], message["status"])
            await send(message)

        await self._app(scope, receive, counted)
