"""The other ways to send a new version of a file: each makes what is sent, applies it, and says what that took."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.environments import Environment, NotInstalled

PEERS = Path("build/bench/peers")
_BSDIFF = Environment(name="bsdiff4", packages=("bsdiff4==1.3.2",))
_BSDIFF_MAKE = """
import bsdiff4, sys, time
began = time.process_time()
bsdiff4.file_diff(*sys.argv[1:4])
print(time.process_time() - began)
"""
_ZSTD_LEVEL, _XDELTA_LEVEL = 19, 9
_LEAST_S = 0.4
_ROUNDS = 5

# Runs in a process of its own: one of ours or a peer's interpreter. Prints the best seconds, and the megabytes that
# applying took beyond what the process had before. (ru_maxrss would begin with what the parent had: it outlives exec.)
_APPLY = """
import json, sys, time
how, base, sent, made, least_s = sys.argv[1:6]
if how == "ours":
    from edge_agent.contract.delta.apply import apply_delta
    from edge_agent.contract.delta.form import read_head
    from edge_agent.contract.delta.reading import DeltaReader
    with open(sent, "rb") as file:
        head = read_head(DeltaReader(file))
    def once():
        with open(sent, "rb") as delta, open(base, "rb") as old, open(made, "wb") as new:
            apply_delta(delta, old, new, base_sha256=head.base_sha256, sha256=head.sha256, size_bytes=head.size_bytes)
elif how == "bsdiff4":
    import bsdiff4
    def once():
        bsdiff4.file_patch(base, made, sent)
else:
    import zstandard
    def once():
        with open(sent, "rb") as packed, open(base, "rb") as old, open(made, "wb") as new:
            known = zstandard.ZstdCompressionDict(old.read() if how == "patch-from" else b"",
                                                  dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            reader = zstandard.ZstdDecompressor(dict_data=known if how == "patch-from" else None,
                                                max_window_size=1 << 31)
            reader.copy_stream(packed, new)
def memory(what):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(what)) / 1024
before = memory("VmRSS")
times = []
while len(times) < 3 or sum(times) < float(least_s) and len(times) < 300:
    began = time.process_time()
    once()
    times.append(time.process_time() - began)
print(json.dumps([min(times), max(0.0, memory("VmHWM") - before)]))
"""
# The same for a program: its memory is that of the process which begins as this small one.
_RUN = """
import json, resource, subprocess, sys
def spent():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
times = []
for _ in range(int(sys.argv[1])):
    began = spent()
    subprocess.run(sys.argv[2:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    times.append(spent() - began)
print(json.dumps([min(times), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))
"""


@dataclass(frozen=True)
class Sent:
    """What one method makes of a pair of files.

    Args:
        size_bytes: What crosses the network.
        make_s: Processor time to make it: on a busy machine the clock would measure the others.
        apply_s: Processor time to apply it, the best of several; None where nothing is to be applied.
        apply_memory_mb: Beyond what the process takes anyway.
    """

    size_bytes: int
    make_s: float
    apply_s: float | None = None
    apply_memory_mb: float | None = None


Method = Callable[[Path, Path, Path], Sent]


def methods(*, install: bool) -> tuple[dict[str, Method], list[str]]:
    """The methods that can be had here by name, and why the others cannot."""
    found: dict[str, Method] = {"full": _full, f"zstd -{_ZSTD_LEVEL}": _zstd, "zstd patch-from": _patch_from}
    missing = []
    makers: dict[str, Callable[[bool], Method]] = {"bsdiff4": _bsdiff4, "xdelta3": _xdelta3}
    for name, make in makers.items():
        try:
            found[name] = make(install)
        except NotInstalled as error:
            missing.append(f"{name}: not measured: {error}")
    return found, missing


def measured(how: str, base: Path, sent: Path, new: Path, *, python: str = sys.executable) -> tuple[float, float]:
    """Processor seconds and megabytes that applying takes, in a process of its own; the result must be ``new``."""
    made = sent.with_suffix(".made")
    command = [python, "-c", _APPLY, how, str(base), str(sent), str(made), str(_LEAST_S)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _check(made, new)
    seconds, memory_mb = json.loads(done.stdout)
    return seconds, memory_mb


def _check(made: Path, new: Path) -> None:
    if made.read_bytes() != new.read_bytes():
        raise AssertionError(f"{made.name}: what was applied is not the new file")
    made.unlink()


def _full(_base: Path, new: Path, _folder: Path) -> Sent:
    return Sent(new.stat().st_size, 0.0)


def _zstd(base: Path, new: Path, folder: Path) -> Sent:
    return _zstd_with(base, new, folder, how="zstd")


def _patch_from(base: Path, new: Path, folder: Path) -> Sent:
    """What ``zstd --patch-from`` does: the old file is the dictionary, and all of it is within the window."""
    return _zstd_with(base, new, folder, how="patch-from")


def _zstd_with(base: Path, new: Path, folder: Path, *, how: str) -> Sent:
    import zstandard

    sent, old = folder / "sent.zst", base.read_bytes() if how == "patch-from" else b""
    settings = zstandard.ZstdCompressionParameters.from_level(
        _ZSTD_LEVEL,
        source_size=new.stat().st_size + len(old),
        window_log=max(20, (new.stat().st_size + len(old)).bit_length()),
        enable_ldm=how == "patch-from",
    )
    began = time.process_time()
    known = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if old else None
    sent.write_bytes(zstandard.ZstdCompressor(compression_params=settings, dict_data=known).compress(new.read_bytes()))
    make_s = time.process_time() - began
    return Sent(sent.stat().st_size, make_s, *measured(how, base, sent, new))


def _bsdiff4(install: bool) -> Method:
    python = _BSDIFF.python(PEERS, install=install)

    def method(base: Path, new: Path, folder: Path) -> Sent:
        sent = folder / "sent.bsdiff"
        command = [python, "-c", _BSDIFF_MAKE, str(base), str(new), str(sent)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return Sent(sent.stat().st_size, float(done.stdout), *measured("bsdiff4", base, sent, new, python=python))

    return method


def _xdelta3(install: bool) -> Method:
    program = shutil.which("xdelta3") or _from_apt(install)

    def method(base: Path, new: Path, folder: Path) -> Sent:
        sent, made = folder / "sent.vcdiff", folder / "made"
        window = str(max(1 << 20, 1 << base.stat().st_size.bit_length()))
        options = ["-f", f"-{_XDELTA_LEVEL}", "-S", "lzma", "-B", window, "-s", str(base)]
        make_s, _ = _run(1, [program, "-e", *options, str(new), str(sent)])
        apply_s, memory_mb = _run(_ROUNDS, [program, "-d", "-f", "-B", window, "-s", str(base), str(sent), str(made)])
        _check(made, new)
        return Sent(sent.stat().st_size, make_s, apply_s, memory_mb)

    return method


def _run(rounds: int, command: list[str]) -> tuple[float, float]:
    """Best seconds of processor time and peak megabytes of a program, its start among them."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", _RUN, str(rounds), *command], capture_output=True, text=True, check=True
    )
    seconds, memory_mb = json.loads(done.stdout)
    return seconds, memory_mb


def _from_apt(install: bool) -> str:
    """The program out of the distribution's package, unpacked without installing it: that needs no rights."""
    folder = PEERS / "xdelta3"
    program = folder / "usr/bin/xdelta3"
    if program.exists():
        return str(program.resolve())
    if not install:
        raise NotInstalled("not on PATH, and --no-install was given")
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NotInstalled("not on PATH; install xdelta3 with this system's packages")
    with tempfile.TemporaryDirectory() as work:
        steps = (["apt-get", "download", "xdelta3"], ["sh", "-c", f"dpkg-deb -x *.deb '{folder.resolve()}'"])
        folder.mkdir(parents=True, exist_ok=True)
        for step in steps:
            done = subprocess.run(step, cwd=work, capture_output=True, text=True, check=False, timeout=120)
            if done.returncode:
                raise NotInstalled(f"{step[0]}: {done.stderr.strip().splitlines()[-1:]}")
    if not program.exists():
        raise NotInstalled("its package has no program")
    return str(program.resolve())
