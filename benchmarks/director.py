"""The director: devices whose metadata is signed and durably stored per second, beside the stock way.

The stock way is python-tuf's metadata and serialisation, and three files per device, each synced with its folder.
"""

from __future__ import annotations

import datetime as dt
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from edge_agent.contract.repository import AssignedHardware, Assignment, target_name
from edge_agent.durable import write_durably
from fleet_server.updates.director import Director
from fleet_server.updates.orders import Order

DEVICES = 5_000
STOCK_DEVICES = 200  # of so slow a way, enough to know its rate
HARDWARE = AssignedHardware(architecture="aarch64", accelerator="orin", runtimes={"onnxruntime": "1.23.2"})


def order(number: int, release: int = 1) -> Order:
    """What one of many devices should install."""
    device = f"camera-{number:05}"
    assignment = Assignment(device=device, release=release, rollout="r-1a2b3c4d", hardware=HARDWARE)
    return Order(
        device=device, target=target_name("digits", "42"), length=4_321, sha256=f"{number:064x}", assignment=assignment
    )


def rows(folder: Path, devices: int = DEVICES) -> list[dict[str, Any]]:
    """Rows ``{what, devices, per_second, stock_per_second}``."""
    signer = CryptoSigner.generate_ed25519()
    director = Director(folder, root=_root(signer), signer=signer)
    stock = _per_second(lambda: _stock_fleet(folder / "stock", signer))
    first, again = ([order(number, release) for number in range(devices)] for release in (1, 2))
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=5)
    found = {
        "assign_many, new devices": _per_second(lambda: director.assign_many(first)),
        "assign_many, the next release": _per_second(lambda: director.assign_many(again)),
        "assign_many, 50 at a time": _per_second(
            lambda: [director.assign_many([order(n, 3) for n in range(at, at + 50)]) for at in range(0, devices, 50)]
        ),
        "refresh": _per_second(lambda: director.refresh(later)),
    }
    count = {"refresh": director.refresh(later + dt.timedelta(days=5))}
    if count["refresh"] != devices:
        raise AssertionError(f"{count['refresh']} of {devices} devices were signed anew")
    rate = {"devices": devices, "stock_per_second": round(STOCK_DEVICES * stock)}
    return [{"what": what, **rate, "per_second": round(devices * per_second)} for what, per_second in found.items()]


def main() -> list[dict[str, Any]]:
    """Measure and print; gives the rows."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        found = rows(Path(folder))
    for row in found:
        sys.stdout.write(
            f"director: {row['what']:32}{row['devices']:6} devices {row['per_second']:6} devices/s; "
            f"stock {row['stock_per_second']} devices/s\n"
        )
    return found


def _per_second(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1 / (time.perf_counter() - began)


def _root(signer: CryptoSigner) -> bytes:
    root = Root(expires=dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(days=365))
    for role in ("root", "targets", "snapshot", "timestamp"):
        root.add_key(signer.public_key, role)
    metadata = Metadata(root)
    metadata.sign(signer)
    return metadata.to_bytes()


def _stock_fleet(folder: Path, signer: CryptoSigner) -> None:
    for number in range(STOCK_DEVICES):
        _stock(folder, signer, order(number))


def _stock(folder: Path, signer: CryptoSigner, one: Order) -> None:
    place = folder / one.device
    place.mkdir(parents=True)
    expires = (dt.datetime.now(dt.UTC) + dt.timedelta(days=7)).replace(microsecond=0)
    custom = {"custom": {"device": one.device, "release": one.assignment.release, "rollout": one.assignment.rollout}}
    target = TargetFile(one.length, {"sha256": one.sha256}, one.target, unrecognized_fields=custom)
    data = _signed(Metadata(Targets(1, expires=expires, targets={one.target: target})), signer)
    write_durably(place / "1.targets.json", data)
    meta = {"targets.json": MetaFile.from_data(1, data, ["sha256"])}
    data = _signed(Metadata(Snapshot(1, expires=expires, meta=meta)), signer)
    write_durably(place / "1.snapshot.json", data)
    meta_file = MetaFile.from_data(1, data, ["sha256"])
    write_durably(
        place / "timestamp.json", _signed(Metadata(Timestamp(1, expires=expires, snapshot_meta=meta_file)), signer)
    )


def _signed(metadata: Metadata[Any], signer: CryptoSigner) -> bytes:
    metadata.sign(signer)
    return metadata.to_bytes()


if __name__ == "__main__":
    main()
