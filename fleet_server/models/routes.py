"""REST: models and their released packages."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from fastapi import APIRouter, Depends
from pydantic import Field

from edge_agent.contract.manifest import Manifest
from fleet_server.access.guard import Guard
from fleet_server.access.roles import Role
from fleet_server.json_answers import Answer, describe
from fleet_server.json_requests import RequestBody
from fleet_server.models.records import ModelRecord, PackageRecord
from fleet_server.models.service import ModelService


class Withdrawal(RequestBody):
    """Why a package is taken back."""

    reason: str = Field(min_length=1, max_length=500, examples=["wrong on smudged sevens"])


def routes(
    service: ModelService, guard: Guard, *, withdraw: Callable[[PackageRecord, str], PackageRecord]
) -> APIRouter:
    """The routes of models.

    Args:
        withdraw: Takes a package back: also halts its rollout, which is another feature's.
    """
    router = APIRouter(prefix="/api/v1", tags=["models"])
    viewer, admin = Depends(guard.require(Role.VIEWER)), Depends(guard.require(Role.ADMIN))

    @router.get("/models", dependencies=[viewer], responses=describe(list[ModelRecord]))
    def list_models() -> Answer:
        """List all models with their versions, newest first, and their champion."""
        return Answer(service.list())

    @router.get("/models/{model}", dependencies=[viewer], responses=describe(ModelRecord))
    def get_model(model: str) -> Answer:
        """Show one model."""
        return Answer(service.get(model))

    @router.get("/models/{model}/versions/{version}", dependencies=[viewer], responses=describe(PackageRecord))
    def get_version(model: str, version: str) -> Answer:
        """Show one package, by version or digest, with its evaluation."""
        return Answer(service.find(model, version))

    @router.get("/models/{model}/versions/{version}/manifest", dependencies=[viewer])
    def get_manifest(model: str, version: str) -> Answer:
        """Show a package's manifest: signature, files, lineage, objectives."""
        manifest: Manifest = service.manifest(service.find(model, version).digest)
        return Answer(msgspec.to_builtins(manifest))

    @router.post("/models/{model}/versions/{version}/withdraw", dependencies=[admin], responses=describe(PackageRecord))
    def withdraw_version(model: str, version: str, why: Withdrawal) -> Answer:
        """Take a package back: its rollout is halted, no new device gets it. Roll out another to replace it."""
        return Answer(withdraw(service.find(model, version), why.reason))

    return router
