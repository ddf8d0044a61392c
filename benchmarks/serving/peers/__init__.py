"""The servers, one file each."""

from __future__ import annotations

from benchmarks.serving.peer import Peer
from benchmarks.serving.peers.asgi_stub import AsgiStub
from benchmarks.serving.peers.bentoml import BentoMl
from benchmarks.serving.peers.fastapi import FastApi
from benchmarks.serving.peers.litserve import LitServe
from benchmarks.serving.peers.mlserver import MlServer
from benchmarks.serving.peers.shoal import Shoal
from benchmarks.serving.peers.triton import Triton


def all_peers() -> list[Peer]:
    """Every server, ours first."""
    ours: list[Peer] = [Shoal(transport) for transport in Shoal.TRANSPORTS]
    return [*ours, Triton(), MlServer(), LitServe(), BentoMl(), FastApi(), AsgiStub()]
