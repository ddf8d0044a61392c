"""Large messages on many streams at once: a few come at a time, and of silent streams not all may send."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from edge_agent.serving.grpc import oip_pb2 as oip
from tests.integration.attacked_agent import AttackedAgent, attacked
from tests.integration.hostile_requests import Request, Tensor, grpc_message

STREAMS = 36
_LARGE = Request(inputs=(Tensor(shape=(1, 3_900_000), data=bytes(15_600_000)),))


# Before streams took turns it was more than 1.3 GB, silent before or not.
@pytest.mark.parametrize(("silent_s", "limit_bytes"), [(0.0, 400_000_000), (4.0, 600_000_000)])
def test_large_messages_on_many_streams_take_little_more_memory_than_a_few(
    tmp_path: Path, silent_s: float, limit_bytes: int
) -> None:
    data = grpc_message(_LARGE).SerializeToString()
    with attacked(tmp_path, body_mib=16) as device:
        before, peak, over = device.rss, 0, threading.Event()
        together = threading.Barrier(STREAMS)

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.005):
                peak = max(peak, device.rss)

        def messages() -> Iterator[bytes]:
            together.wait(60)
            over.wait(silent_s)
            yield data

        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(STREAMS) as applications:
            outcomes = list(applications.map(lambda _: _outcome(device, messages()), range(STREAMS)))
        over.set()
        watcher.join()
        assert set(outcomes) <= {"answered", "UNAVAILABLE"}
        assert "answered" in outcomes
        if not silent_s:
            assert outcomes.count("answered") > STREAMS // 2  # all, where other programs leave it the processors
        assert peak - before < limit_bytes, peak - before
        device.assert_rests()


def _outcome(device: AttackedAgent, messages: Iterator[bytes]) -> str:
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(str(device.addresses["grpc"]), options=options) as channel:
        call: Any = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer", bytes, bytes)
        try:
            (answer,) = call(messages, timeout=60)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "answered" if oip.ModelStreamInferResponse.FromString(answer).error_message else "not refused"
