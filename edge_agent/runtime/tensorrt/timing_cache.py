"""What kernels took when they were measured: kept between builds, of which it is the longest part.

A cache holds for one version and one kind of GPU; its file is named after both. The bytes go to native code, so they
are verified before.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from edge_agent.durable import write_durably
from edge_agent.runtime.tensorrt.bindings import Bindings

_DIGEST_BYTES = hashlib.sha256().digest_size


def load_timings(bindings: Bindings, config: Any, file: Path) -> None:
    """Have a build begin with what earlier ones measured; with nothing where the file is missing or damaged."""
    if not bindings.has_timing_cache:
        return
    cache = config.create_timing_cache(_read(file))
    # Refused where it is another GPU's after all; the build then measures everything, and what it finds is kept.
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def save_timings(bindings: Bindings, config: Any, file: Path) -> None:
    """Keep what was measured; a full disk costs the next build its time, not this one its engine."""
    cache = config.get_timing_cache() if bindings.has_timing_cache else None
    if cache is None:
        return
    data = bytes(memoryview(cache.serialize()))
    try:
        write_durably(file, hashlib.sha256(data).digest() + data)
    except OSError as error:
        print(f"{file}: timings not kept: {error}", file=sys.stderr)  # noqa: T201 - the worker's own log


def _read(file: Path) -> bytes:
    try:
        kept = file.read_bytes()
    except OSError:
        return b""
    digest, data = kept[:_DIGEST_BYTES], kept[_DIGEST_BYTES:]
    return data if hashlib.sha256(data).digest() == digest else b""
