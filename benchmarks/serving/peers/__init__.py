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
    return [
        Shoal(), Triton(), Triton(batching=True), MlServer(), LitServe(), BentoMl(), FastApi(), AsgiStub(),
    ]  # fmt: skip
