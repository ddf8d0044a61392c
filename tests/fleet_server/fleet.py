"""A fleet for tests: the real services on a real database with a real director, and devices that play their part."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from edge_agent.contract.enrolment import BrokerAddress, EnrolmentRequest
from edge_agent.contract.envelope import decode
from edge_agent.contract.manifest import (
    Classification,
    FileEntry,
    Lineage,
    Manifest,
    Variant,
    digest_of,
    encode_manifest,
)
from edge_agent.contract.messages import Desired, Hardware, Reported, ReportedModel, Status, UpdateStep
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.contract.topics import parse
from fleet_server.access.service import AccessService
from fleet_server.database import Database, metadata
from fleet_server.devices.service import DeviceService
from fleet_server.models.service import ModelService
from fleet_server.rollouts.service import RolloutService
from fleet_server.updates.director import Director, load_signer

HARDWARE = Hardware(architecture="x86_64", system="Linux", cpus=4, runtimes={"onnxruntime": "1.23.2"})
BROKER = BrokerAddress(host="127.0.0.1", port=1883)


def manifest(version: str, *, model: str = "digits", parent: str | None = None) -> Manifest:
    """A small valid manifest."""
    lineage = Lineage(
        dataset="d" * 64,
        code_sha256="c" * 64,
        lock_sha256="e" * 64,
        seed=1,
        run="run-1",
        trained_at="2026-01-01T00:00:00Z",
    )
    signature = Signature(
        inputs=(TensorSpec(name="image", datatype=Datatype.FP32, shape=(None, 1, 8, 8)),),
        outputs=(TensorSpec(name="probabilities", datatype=Datatype.FP32, shape=(None, 10)),),
    )
    weights = hashlib.sha256(version.encode()).hexdigest()
    return Manifest(
        name=model,
        version=version,
        parent=parent,
        lineage=lineage,
        signature=signature,
        task=Classification(output="probabilities", labels=tuple("0123456789")),
        variants={"fp32": Variant(model="model.onnx")},
        files={"model.onnx": FileEntry(sha256=weights, size_bytes=1000)},
    )


class Fleet:
    """The services, a clock that stands still until it is moved, and what was published."""

    def __init__(self, folder: Path, keys: Path) -> None:
        self.now_ms, self.folder = 1_000_000, folder
        self.db = Database(f"sqlite:///{folder / 'shoal.db'}")
        metadata.create_all(self.db.engine)
        self.published: dict[str, bytes] = {}
        self.broker_is_away = False
        self.devices = DeviceService(self.db, self._publish, "test", clock=self.clock)
        self.models = ModelService(self.db, clock=self.clock)
        root = (keys / "director" / "1.root.json").read_bytes()
        self.director = Director(folder, root=root, signer=load_signer(keys / "server" / "director.pem"))
        self.access = AccessService(
            self.db,
            fleet="test",
            roots=lambda: ("{image}", "{director}"),
            on_enrolled=self.devices.enrolled,
            clock=self.clock,
        )
        self.rollouts = RolloutService(self.db, self.devices, self.models, self.director, clock=self.clock)

    def clock(self) -> int:
        """The time, in milliseconds."""
        return self.now_ms

    def publish(self, version: str, model: str = "digits") -> str:
        """Release a package; gives its digest."""
        one = manifest(version, model=model)
        digest = digest_of(encode_manifest(one))
        self.models.register(one, digest, {"accuracy": 0.9})
        return digest

    def join(self, name: str) -> Device:
        """A device that has enrolled and is connected."""
        request = EnrolmentRequest(claim=self.access.create_claim(name), device=name, hardware=HARDWARE)
        secret = self.access.enrol(request, server="http://server", broker=BROKER).secret
        device = Device(self, name, secret)
        device.connect()
        return device

    def tick(self, seconds: float = 1.0) -> None:
        """Let time pass, then do what the server does each second."""
        self.now_ms += round(seconds * 1000)
        self.devices.tick(self.now_ms)
        self.rollouts.tick(self.now_ms)

    def _publish(self, topic: str, payload: bytes, retain: bool) -> None:
        if self.broker_is_away:
            raise ConnectionError("the broker is away")
        assert retain
        self.published[parse(topic)[0].device] = payload


class Device:
    """What an agent does, as far as the server can see it."""

    def __init__(self, fleet: Fleet, name: str, secret: str) -> None:
        self._fleet, self.name, self.secret = fleet, name, secret
        self.models: dict[str, ReportedModel] = {}
        self.hardware = HARDWARE

    @property
    def desired(self) -> Desired:
        """What the broker retains for it."""
        return decode(self._fleet.published[self.name], Desired)

    def connect(self) -> None:
        """Connect to the broker."""
        self._fleet.devices.on_status(self.name, Status(online=True, at_ms=self._fleet.now_ms))

    def disconnect(self) -> None:
        """Vanish; the broker publishes the last will."""
        self._fleet.devices.on_status(self.name, Status(online=False, at_ms=self._fleet.now_ms))

    def update(self, model: str = "digits", *, fails: str = "", requests: int = 0, failed: int = 0) -> None:
        """Act on the desired state: commit to it, or fail for a reason."""
        wanted = self.desired.models[model]
        before = self.models.get(model)
        kept = ReportedModel(version="", package="", step=UpdateStep.FAILED) if before is None else before
        self.models[model] = msgspec.structs.replace(
            kept,
            version=kept.version if fails else wanted.version,
            package=kept.package if fails else wanted.package,
            step=UpdateStep.FAILED if fails else UpdateStep.COMMITTED,
            target=wanted.package,
            reason=fails,
            release=wanted.release,
            rollout=wanted.rollout,
            requests=requests,
            failed=failed,
        )
        self.report()

    def report(self) -> None:
        """Say what it is."""
        revision = self.desired.revision if self.name in self._fleet.published else 0
        self._fleet.devices.on_reported(
            self.name,
            Reported(
                agent_version="1.0",
                started_at_ms=1,
                desired_revision=revision,
                hardware=self.hardware,
                models=self.models,
                api="http://127.0.0.1:8500",
            ),
        )
