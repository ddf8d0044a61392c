"""HTTP: devices fetch metadata and files, the publisher uploads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response, status
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from fleet_server import http_errors
from fleet_server.errors import Forbidden, NotFound
from fleet_server.json_requests import decode, describe_body
from fleet_server.updates.deltas import Deltas
from fleet_server.updates.director import Director
from fleet_server.updates.errors import UploadRefused
from fleet_server.updates.image_repository import ImageRepository

_METADATA_LIMIT_BYTES = 32 << 20
# Signed and versioned, but what is newest must be asked for each time.
_NO_CACHE = {"Cache-Control": "no-cache"}
# A delta that is still being made is worth this wait; then the device is told when to ask again.
_MAKING_S = 5.0
_ASK_AGAIN_S = 2


class MetadataUpload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /api/v1/repository/metadata``: the text of each metadata file by its name."""

    files: dict[str, str]


def routes(
    images: ImageRepository,
    director: Director,
    *,
    require_device: Callable[..., str],
    require_publisher: Callable[..., Any],
    deltas: Deltas | None = None,
) -> APIRouter:
    """The routes of updates.

    Args:
        deltas: None serves whole files alone.
        require_device: Dependency that gives the name of the device that asks, or refuses.
        require_publisher: Dependency that refuses who may not upload.
    """
    router = APIRouter(tags=["updates"])
    _for_devices(router, images, director, require_device)
    if deltas is not None:
        _deltas(router, deltas, require_device)
    _for_publishers(router, images, require_publisher)
    return router


def _for_devices(
    router: APIRouter, images: ImageRepository, director: Director, require_device: Callable[..., str]
) -> None:
    # A default, not an annotation: those are resolved where only the module's names are known.
    asks = Depends(require_device)

    @router.get("/updates/image/{file}", summary="Metadata of the image repository", dependencies=[asks])
    def image_metadata(file: str) -> Response:
        return _json(images.metadata(file), file)

    @router.get("/updates/director/{device}/{file}", summary="The director's metadata for one device")
    def director_metadata(device: str, file: str, caller: str = asks) -> Response:
        if caller != device:
            raise Forbidden(f"this is device {caller!r}: it may not see what {device!r} is to install")
        return _json(director.metadata(device, file), file)

    @router.get("/updates/targets/{sha256}", summary="A file of a package", dependencies=[asks])
    def blob(sha256: str) -> Response:
        return _file(images.blobs.released(sha256), sha256)


def _deltas(router: APIRouter, deltas: Deltas, require_device: Callable[..., str]) -> None:
    @router.get(
        "/updates/deltas/{base}/{sha256}",
        summary="What makes a file of a package of an older one; 503 while it is being made",
        dependencies=[Depends(require_device)],
    )
    async def delta(base: str, sha256: str) -> Response:
        found = await run_in_threadpool(deltas.find, base, sha256)
        if isinstance(found, Future):  # waited for without a thread: a whole wave of devices asks at once
            await asyncio.wait([asyncio.wrap_future(found)], timeout=_MAKING_S)
            found = await run_in_threadpool(deltas.find, base, sha256) if found.done() else found
        if isinstance(found, Future):
            text = "the delta is being made; ask again, or for the whole file"
            return http_errors.answer(status.HTTP_503_SERVICE_UNAVAILABLE, text, {"Retry-After": str(_ASK_AGAIN_S)})
        return _file(found, f"{base}-{sha256}")


def _for_publishers(router: APIRouter, images: ImageRepository, require_publisher: Callable[..., Any]) -> None:
    guard = [Depends(require_publisher)]

    @router.head(
        "/api/v1/repository/blobs/{sha256}", summary="Whether a file is here already, and whole", dependencies=guard
    )
    def has_blob(sha256: str) -> Response:
        return _file(images.blobs.needed(sha256), sha256)

    @router.put(
        "/api/v1/repository/blobs/{sha256}",
        summary="Upload a file of a package; devices get it once signed metadata names it",
        status_code=status.HTTP_201_CREATED,
        dependencies=guard,
        openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
    )
    async def put_blob(sha256: str, request: Request) -> Response:
        with images.blobs.receive(sha256) as receiver:
            async for chunk in request.stream():
                await run_in_threadpool(receiver.write, chunk)
            # Syncing gigabytes takes seconds, in which nobody else would be answered; what follows finds them synced.
            await run_in_threadpool(receiver.finish)
        await run_in_threadpool(images.put_back, sha256)
        return Response(status_code=status.HTTP_201_CREATED)

    @router.post(
        "/api/v1/repository/metadata",
        summary="Upload signed metadata; all of it becomes visible, or nothing",
        dependencies=guard,
        openapi_extra=describe_body(MetadataUpload),
    )
    async def post_metadata(request: Request) -> dict[str, list[str]]:
        files = await _upload(request)
        return {"released": await run_in_threadpool(images.accept, files)}


async def _upload(request: Request) -> dict[str, bytes]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _METADATA_LIMIT_BYTES:
            raise UploadRefused(f"the metadata is larger than {_METADATA_LIMIT_BYTES} bytes")
    return {name: text.encode() for name, text in decode(bytes(body), MetadataUpload).files.items()}


def _json(data: bytes | None, name: str) -> Response:
    if data is None:
        raise NotFound(f"there is no metadata file {name!r}")
    return Response(data, media_type="application/json", headers=_NO_CACHE)


def _file(path: Path | None, sha256: str) -> FileResponse:
    if path is None:
        raise NotFound(f"there is no file {sha256!r}")
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
    return FileResponse(path, media_type="application/octet-stream", headers=headers)
