"""REST: releases that wait for an approver. Devices see nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse
from pydantic import Field

from fleet_server.json_answers import Answer, describe
from fleet_server.json_requests import Body, RequestBody, decode, describe_body
from fleet_server.updates.approvals import Approval, ApprovalDetails, Approvals
from fleet_server.updates.proposal import Proposal


class Signatures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An approver's signatures: in hexadecimal, by role and key identifier."""

    signatures: dict[str, dict[str, str]]


class Rejection(RequestBody):
    """Why a release is refused."""

    reason: str = Field(min_length=1, max_length=500, examples=["worse on smudged sevens"])


def routes(
    approvals: Approvals,
    *,
    require_viewer: Callable[..., Any],
    require_publisher: Callable[..., Any],
    require_admin: Callable[..., Any],
    caller: Callable[..., str],
) -> APIRouter:
    """The routes of approvals.

    Args:
        require_viewer: Dependency of who may read them, and bring a signature: only its key could have made it.
        require_publisher: Of who may propose.
        require_admin: Of who may refuse.
        caller: Gives the name of the token with which somebody asks; empty where it has none.
    """
    router = APIRouter(prefix="/api/v1", tags=["updates"])
    viewer, admin = [Depends(require_viewer)], [Depends(require_admin)]

    @router.get("/approvals", dependencies=viewer, responses=describe(list[Approval]))
    def list_approvals() -> Answer:
        """List the releases that wait for signatures, and those that were refused, the newest first."""
        return Answer(approvals.list())

    @router.post(
        "/approvals",
        dependencies=[Depends(require_publisher)],
        responses=describe(Approval),
        openapi_extra=describe_body(Proposal),
    )
    def propose(body: Body) -> Answer:
        """Propose a release that the publisher has signed; its files must have been uploaded."""
        return Answer(approvals.propose(decode(body, Proposal)))

    @router.get("/approvals/{model}/{version}", dependencies=viewer, responses=describe(ApprovalDetails))
    def get_approval(model: str, version: str) -> Answer:
        """Show one, with what is to be signed and the metadata that it follows."""
        return Answer(approvals.details(model, version))

    @router.get("/approvals/{model}/{version}/files/{name}", dependencies=viewer, response_class=FileResponse)
    def get_file(model: str, version: str, name: str) -> FileResponse:
        """Read its manifest.json, evaluation.json or card.md."""
        return FileResponse(approvals.file(model, version, name), media_type="application/octet-stream")

    @router.post(
        "/approvals/{model}/{version}/signatures",
        dependencies=viewer,
        responses=describe(Approval),
        openapi_extra=describe_body(Signatures),
    )
    def sign(model: str, version: str, body: Body) -> Answer:
        """Add an approver's signatures; what is not a good signature of a key that is missing is refused."""
        return Answer(approvals.sign(model, version, decode(body, Signatures).signatures))

    @router.post("/approvals/{model}/{version}/reject", dependencies=admin, responses=describe(Approval))
    def reject(model: str, version: str, why: Rejection, who: str = Depends(caller)) -> Answer:
        """Refuse a release: its files are forgotten, and the publisher drops it. The first refusal holds."""
        return Answer(approvals.reject(model, version, why.reason, by=who))

    return router
