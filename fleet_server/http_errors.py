"""Every error of the REST API is ``{"error": "..."}``, its status that of the error's class."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from edge_agent.contract.errors import ShoalError
from fleet_server.errors import NotAuthenticated

_log = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Make ``app`` answer errors in the API's one form; what nobody foresaw is logged with its traceback."""
    app.add_exception_handler(ShoalError, _shoal_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(sa.exc.OperationalError, _database)
    app.add_exception_handler(Exception, _unforeseen)


def answer(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The one form of an error."""
    return JSONResponse({"error": text}, status_code=status, headers=headers)


def _shoal_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ShoalError)  # noqa: S101  registered for this class only
    if error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("%s %s: %s", request.method, request.url.path, error, exc_info=error)
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, NotAuthenticated) else None
    return answer(error.http_status, str(error), headers)


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101  registered for this class only
    return answer(HTTPStatus.BAD_REQUEST, "; ".join(_in_words(one) for one in error.errors()))


def _in_words(one: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in one["loc"])
    if one["type"] == "extra_forbidden":
        return f"{where}: there is no such member here, see /api/docs"
    return f"{where}: {one['msg']}"


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101  registered for this class only
    text = str(error.detail)
    if text == HTTPStatus(error.status_code).phrase:  # the framework's own: it does not say what of
        text = f"{request.method} {request.url.path}: {text.lower()}; /api/docs lists what there is"
    return answer(error.status_code, text, dict(error.headers) if error.headers else None)


def _database(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s: the database refuses", request.method, request.url.path, exc_info=error)
    cause = error.orig if isinstance(error, sa.exc.OperationalError) else error
    return answer(HTTPStatus.SERVICE_UNAVAILABLE, f"the server's database cannot do this now: {cause}; try again later")


def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer(
        HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__} inside the server; its log has the traceback"
    )
