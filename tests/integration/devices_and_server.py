"""Two sides of one wire, for tests: a server that hears, devices that speak, and real brokers between them."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import sqlalchemy as sa

from edge_agent.contract.enrolment import BrokerAddress, Enrolment
from edge_agent.contract.envelope import Envelope
from edge_agent.contract.messages import Desired, Event, EventKind, Reported, Sample, SampleBatch, SampleReason, Status
from edge_agent.contract.topics import Stream
from edge_agent.link.backoff import Backoff
from edge_agent.link.link import Link
from edge_agent.link.window import Window
from edge_agent.outbox.outbox import Outbox
from fleet_server.broker.embedded import EmbeddedBroker
from fleet_server.broker.rules import SERVER_USER
from fleet_server.database import Database, metadata
from fleet_server.ingest.receiver import Receiver
from fleet_server.ingest.service import IngestService
from fleet_server.labels.handler import on_labels
from fleet_server.mqtt import ServerLink
from fleet_server.samples.handler import on_samples
from fleet_server.samples.tables import lake_spool

FLEET = "reef"
PATIENCE_S = 60.0


def secret_of(user: str) -> str:
    return f"secret of {user}"


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE_S} s in vain: {what}"
        time.sleep(0.02)


class Broker(Protocol):
    """A broker that can go down and come back at the same address."""

    port: int

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Embedded:
    """The server's own broker."""

    def __init__(self) -> None:
        self.port = 0
        self.broker: EmbeddedBroker | None = None

    def start(self) -> None:
        self.broker = EmbeddedBroker(
            "127.0.0.1", self.port, authenticate=lambda user, password: password == secret_of(user), fleet=FLEET
        )
        self.broker.start()
        self.port = self.broker.port

    def stop(self) -> None:
        if self.broker is not None:
            self.broker.stop()
            self.broker = None


class Mosquitto:
    """An installed mosquitto, with the access rules that a production fleet gives it; it keeps nothing on disk."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program, self._folder = program, folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self) -> None:
        base = f"fleet/v1/{FLEET}/%u"
        (self._folder / "acl").write_text(
            f"user {SERVER_USER}\ntopic readwrite #\n"
            f"pattern write {base}/up/+\npattern write {base}/twin/reported\npattern write {base}/status\n"
            f"pattern read {base}/down/+\npattern read {base}/twin/desired\n"
        )
        passwords = self._folder / "passwords"
        passwords.write_text("".join(f"{user}:{secret_of(user)}\n" for user in ("d1", "d2", "mallory", SERVER_USER)))
        passwords.chmod(0o600)
        subprocess.run([self._program.parent.parent / "bin/mosquitto_passwd", "-U", passwords], check=True)
        config = self._folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\nuser root\nlog_type none\n"
            f"password_file {passwords}\nacl_file {self._folder / 'acl'}\n"
        )
        self._process = subprocess.Popen([self._program, "-c", config])
        until(self._answers, "mosquitto listens")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "mosquitto ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Server:
    """The server's hearing: database, ingest, link."""

    def __init__(self, folder: Path, port: int) -> None:
        self.db = Database(f"sqlite:///{folder / 'server.db'}")
        metadata.create_all(self.db.engine)
        self.heard: dict[str, list[int]] = {}
        self.reported: dict[str, Reported] = {}
        self.online: dict[str, bool] = {}
        self.ingest = IngestService(
            self.db,
            {
                Stream.EVENTS: self._on_event,
                Stream.SAMPLES: on_samples,
                Stream.LABELS: on_labels,
                Stream.METRICS: lambda *_: None,
                Stream.PROFILES: lambda *_: None,
            },
        )
        self.link = ServerLink("127.0.0.1", port, SERVER_USER, secret_of(SERVER_USER), FLEET)
        self.receiver = Receiver(
            FLEET,
            self.ingest,
            publish=self.link.publish,
            on_reported=self.reported.__setitem__,
            on_status=self._on_status,
        )

    def start(self) -> None:
        self.link.start(self.receiver.receive, on_connected=self.receiver.announce)

    def stop(self) -> None:
        self.link.stop()
        self.db.close()

    def samples(self, device: str) -> list[int]:
        """The numbers of the device's samples as they were stored, in order."""
        with self.db.read() as connection:
            rows = connection.execute(sa.select(lake_spool.c.row).order_by(lake_spool.c.id)).scalars().all()
        decoded = [msgspec.msgpack.decode(row) for row in rows]
        return [int(row["request_id"]) for row in decoded if row["device"] == device]

    def _on_event(self, _connection: sa.Connection, envelope: Envelope, _event: Event) -> None:
        self.heard.setdefault(envelope.device, []).append(envelope.sequence)

    def _on_status(self, device: str, status: Status) -> None:
        self.online[device] = status.online


class Device:
    """A device's outbox and link; stopping it keeps the folder."""

    def __init__(self, name: str, folder: Path, port: int) -> None:
        self.name, self._folder = name, folder
        self.port = port
        self.desired: list[Desired] = []
        self.taken = 0
        self._lock = threading.Lock()
        self.open()

    def open(self) -> None:
        self.outbox = Outbox(self._folder / f"{self.name}.db", fleet=FLEET, device=self.name, limit_bytes=64 << 20)
        enrolment = Enrolment(
            fleet=FLEET,
            device=self.name,
            secret=secret_of(self.name),
            server="http://127.0.0.1:1",
            broker=BrokerAddress(host="127.0.0.1", port=self.port),
            image_root="",
            director_root="",
        )
        self.link = Link(
            enrolment,
            self.outbox,
            on_desired=self.desired.append,
            window=lambda: Window(timeout_s=1.0, longest_timeout_s=4.0, gap_delay_s=0.3),
            backoff=Backoff(0.1, 0.5),
            keepalive_s=5,
        )

    def start(self) -> None:
        self.link.start()

    def stop(self) -> None:
        self.link.stop()
        self.outbox.close()

    def sample(self, count: int, *, padding: int = 0) -> None:
        """Take samples numbered on from the last, one message each."""
        with self._lock:
            numbers = range(self.taken, self.taken + count)
            self.taken += count
        self.outbox.append_all([(Stream.SAMPLES, one_sample(number, padding)) for number in numbers])

    def all_acknowledged(self) -> bool:
        return self.outbox.size()[0] == 0


def one_sample(number: int, padding: int = 0) -> SampleBatch:
    sample = Sample(
        request_id=str(number),
        package="0" * 64,
        at_ms=1_700_000_000_000 + number,
        reason=SampleReason.UNIFORM,
        inclusion_probability=0.5,
        prediction="3",
        confidence=0.9,
        margin=0.4,
        inputs={},
        outputs={},
        group="x" * padding,
    )
    return SampleBatch(model="digits", samples=(sample,))


def one_event() -> Event:
    return Event(kind=EventKind.AGENT_STARTED, at_ms=1)


@contextlib.contextmanager
def running(*parts: Broker | Server | Device) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for part in parts:
            part.start()
            stack.callback(part.stop)
        yield
