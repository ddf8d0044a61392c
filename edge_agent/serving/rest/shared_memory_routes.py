"""The routes of shared memory: status, register and unregister, for system memory and for CUDA's.

Load tools ask CUDA's status and unregister before anything else, so these are answered: there is nothing there.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge_agent.contract.errors import MalformedRequest, Unsupported
from edge_agent.serving.http.message import HttpRequest, HttpResponse, document
from edge_agent.serving.shared_memory import Regions

Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Registration(msgspec.Struct):
    key: str
    byte_size: Size
    offset: Size = 0


_decoder = msgspec.json.Decoder(_Registration)


def system_status(request: HttpRequest, regions: Regions, region: str | None) -> HttpResponse:  # noqa: ARG001
    """All regions, or one, as a list.

    Raises:
        UnknownRegion: There is none of this name.
    """
    return document(regions.status(region))


def system_register(request: HttpRequest, regions: Regions, region: str | None) -> HttpResponse:
    """Register the region that the body describes.

    Raises:
        MalformedRequest: It cannot be used; see :meth:`Regions.register`.
    """
    if region is None:
        raise MalformedRequest("a region is registered by its name: /v2/systemsharedmemory/region/NAME/register")
    try:
        wanted = _decoder.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"the registration's JSON: {error}") from error
    regions.register(region, wanted.key, wanted.offset, wanted.byte_size)
    return document({})


def system_unregister(request: HttpRequest, regions: Regions, region: str | None) -> HttpResponse:  # noqa: ARG001
    """Forget a region, or all."""
    regions.unregister(region)
    return document({})


def cuda_status(request: HttpRequest, regions: Regions, region: str | None) -> HttpResponse:  # noqa: ARG001
    """There are no CUDA regions."""
    return document([])


def cuda_register(request: HttpRequest, regions: Regions, region: str | None) -> HttpResponse:  # noqa: ARG001
    """CUDA memory is not shared here.

    Raises:
        Unsupported: Always.
    """
    raise Unsupported(
        f"CUDA shared memory region '{region or ''}': this device shares system memory only; register POSIX shared "
        "memory at /v2/systemsharedmemory"
    )


def cuda_unregister(request: HttpRequest, regions: Regions, region: str | None) -> HttpResponse:  # noqa: ARG001
    """There is nothing to forget."""
    return document({})
