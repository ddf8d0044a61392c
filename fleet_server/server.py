"""The fleet server's composition root: builds the parts, starts them in order, stops them in reverse."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import sqlalchemy as sa
from fastapi import APIRouter, Request

from edge_agent.contract.enrolment import BrokerAddress
from edge_agent.contract.errors import ConfigurationError, MessageError, NetworkError, ShoalError, StorageFull
from edge_agent.contract.topics import parse
from fleet_server.access import routes as access_routes
from fleet_server.access.guard import Guard
from fleet_server.access.roles import Role
from fleet_server.api import build_app
from fleet_server.broker.embedded import EmbeddedBroker
from fleet_server.broker.rules import SERVER_USER
from fleet_server.clock import now_ms
from fleet_server.config import ServerConfig
from fleet_server.console import routes as console_routes
from fleet_server.console import run_routes
from fleet_server.data_folder import DataFolder, ServerAddress
from fleet_server.database import Database
from fleet_server.devices import routes as devices_routes
from fleet_server.features import Features, build_features
from fleet_server.http_server import HttpServer, bind
from fleet_server.ingest import routes as ingest_routes
from fleet_server.labels import routes as labels_routes
from fleet_server.metrics import ServerMetrics
from fleet_server.migrate import upgrade
from fleet_server.models import routes as models_routes
from fleet_server.monitoring import routes as monitoring_routes
from fleet_server.mqtt import Received, ServerLink
from fleet_server.predictions import routes as predictions_routes
from fleet_server.rollouts import routes as rollouts_routes
from fleet_server.samples import routes as samples_routes
from fleet_server.schedules import routes as schedules_routes
from fleet_server.ticker import Ticker
from fleet_server.updates import approval_routes
from fleet_server.updates import routes as updates_routes

_BROKER_S = 30.0
_LAKE_S = 2.0
_HOUR_S = 3_600.0

_log = logging.getLogger(__name__)


class Server:
    """All parts of a running server. :meth:`start` returns once it is ready; :meth:`run` waits for a signal.

    Args:
        config: Its settings; the data folder is made where it is missing.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self.folder = DataFolder(Path(config.data))
        self._stack: list[tuple[str, Callable[[], object]]] = []
        self._link: ServerLink | None = None
        self._embedded: EmbeddedBroker | None = None
        self._password = secrets.token_urlsafe(32)
        self._broker_port = config.broker.port
        self._url = ""

    @property
    def url(self) -> str:
        """Where the REST API and the console are."""
        return self._url

    @property
    def broker(self) -> str:
        """``HOST:PORT`` of the broker."""
        return f"{self._config.broker.host}:{self._broker_port}"

    def start(self) -> None:
        """Start everything; what was started before an error is stopped again.

        Raises:
            AddressInUse, ConfigurationError, StorageFull, StorageNotWritable: In words that say what to do.
        """
        try:
            self._start()
        except sa.exc.OperationalError as error:
            self.stop()
            full = "full" in str(error.orig)
            kind = StorageFull if full else ConfigurationError
            raise kind(f"{self._config.database or self.folder.database}: {error.orig}") from error
        except (ShoalError, OSError):
            self.stop()
            raise

    def run(self) -> None:
        """Start, then serve until SIGTERM or SIGINT."""
        stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        self.start()
        stopping.wait()
        _log.info("stopping")
        self.stop()

    def stop(self) -> None:
        """Stop everything that was started, the last first."""
        while self._stack:
            name, undo = self._stack.pop()
            try:
                undo()
            except Exception:  # noqa: BLE001  the other parts must be stopped all the same
                _log.exception("%s could not be stopped", name)

    def _start(self) -> None:
        config, folder = self._config, self.folder
        folder.prepare()
        self._stack.append(("lock", folder.lock()))
        folder.address.unlink(missing_ok=True)  # of a server that was killed
        folder.check_keys()
        listener = bind(config.http.host, config.http.port)
        self._stack.append(("listener", listener.close))
        host = f"[{config.http.host}]" if ":" in config.http.host else config.http.host
        self._url = config.http.public_url.rstrip("/") or f"http://{host}:{listener.getsockname()[1]}"

        db = Database(config.database or f"sqlite:///{folder.database.resolve()}")
        self._stack.append(("database", db.close))
        upgrade(db)
        features = build_features(config, folder, db, self._publish)
        self._stack.append(("director", features.director.close))
        self._stack.append(("deltas", features.deltas.close))
        features.lake.prepare()
        features.images.announce()
        features.devices.forget_connections()
        metrics = ServerMetrics(db)

        self._start_broker(features)
        guard = Guard(features.access)
        app = build_app(self._routers(features, guard), db=db, metrics=metrics, broker_connected=self._is_connected)
        http = HttpServer(app, listener)
        http.start()
        self._stack.append(("http", http.stop))
        for ticker in self._tickers(features, metrics):
            ticker.start()
            self._stack.append(("ticker", ticker.stop))
        self._announce(features)

    def _start_broker(self, features: Features) -> None:
        settings = self._config.broker
        user, password = settings.user, settings.password
        if not settings.external:
            user, password = SERVER_USER, self._password
            broker = EmbeddedBroker(
                settings.host,
                settings.port,
                authenticate=lambda name, secret: self._authenticate(features, name, secret),
                fleet=self._config.fleet,
            )
            broker.start()
            self._stack.append(("broker", broker.stop))
            self._embedded, self._broker_port = broker, broker.port
        link = ServerLink(settings.host, self._broker_port, user, password, self._config.fleet)
        self._link = link
        link.start(
            lambda messages: _receive(features, messages),
            on_connected=lambda: _connected(features),
        )
        self._stack.append(("link", link.stop))
        if not link.wait_connected(_BROKER_S):
            if not settings.external:
                raise NetworkError(f"the server's own broker at {self.broker} does not answer it; see the log")
            _log.error("the broker at %s does not answer; the server goes on and connects when it does", self.broker)

    def _authenticate(self, features: Features, name: str, secret: str) -> bool:
        if name == SERVER_USER:
            return hmac.compare_digest(secret.encode(), self._password.encode())
        return features.access.verify_device(name, secret)

    def _publish(self, topic: str, payload: bytes, retain: bool) -> None:
        if self._link is None:
            raise NetworkError("the link to the broker is not there yet")
        self._link.publish(topic, payload, retain)

    def _disconnect(self, device: str) -> None:
        # An external broker keeps the connection; what comes over it is ignored (Receiver, IngestService).
        if self._embedded is not None:
            self._embedded.disconnect(device)

    def _is_connected(self) -> bool:
        return self._link is not None and self._link.connected

    def _routers(self, features: Features, guard: Guard) -> Sequence[APIRouter]:
        settings = self._config.rollouts
        viewer, admin, trainer = (guard.require(role) for role in (Role.VIEWER, Role.ADMIN, Role.TRAINER))
        return (
            access_routes.routes(features.access, guard, addresses=self._addresses),
            devices_routes.routes(features.devices, guard, disconnect=self._disconnect),
            models_routes.routes(features.models, guard, withdraw=features.rollouts.withdraw),
            rollouts_routes.routes(features.rollouts, guard, waves=settings.waves, gate=settings.gate),
            schedules_routes.routes(
                features.runs,
                features.schedules,
                require_trainer=trainer,
                require_viewer=viewer,
                require_admin=admin,
            ),
            monitoring_routes.routes(features.monitoring, require_viewer=viewer),
            updates_routes.routes(
                features.images,
                features.director,
                require_device=guard.require_download,
                require_publisher=trainer,
                deltas=features.deltas,
            ),
            approval_routes.routes(
                features.approvals,
                require_viewer=viewer,
                require_publisher=trainer,
                require_admin=admin,
                caller=guard.caller,
            ),
            samples_routes.routes(features.samples, guard),
            labels_routes.routes(features.labels, guard),
            predictions_routes.routes(features.predictions, guard),
            ingest_routes.routes(features.ingest, guard),
            console_routes.routes(features.console, guard),
            run_routes.routes(features.run_pages, guard),
        )

    def _addresses(self, request: Request) -> tuple[str, BrokerAddress]:
        """Where whoever sent this request reaches us: as it did just now, unless the settings name another address."""
        http, broker = self._config.http, self._config.broker
        server = http.public_url.rstrip("/") or str(request.base_url).rstrip("/")
        anywhere = broker.host in {"0.0.0.0", "::", ""}  # noqa: S104  compared, not bound
        host = broker.public_host or (request.url.hostname if anywhere else broker.host)
        return server, BrokerAddress(host=host or broker.host, port=broker.public_port or self._broker_port)

    def _tickers(self, features: Features, metrics: ServerMetrics) -> Sequence[Ticker]:
        pause_s = self._config.tick_s
        every: dict[str, tuple[float, Callable[[], object]]] = {
            "devices": (pause_s, lambda: features.devices.tick(now_ms())),
            "rollouts": (pause_s, lambda: features.rollouts.tick(now_ms())),
            "schedules": (pause_s, features.schedules.tick),
            "runs": (pause_s, features.runs.tick),
            "monitoring": (pause_s, lambda: features.monitoring.evaluate(now_ms())),
            "lake": (_LAKE_S, features.lake.flush),
            "compaction": (_HOUR_S, features.lake.compact),
            "director": (_HOUR_S, features.director.refresh),
            "releases": (_HOUR_S, features.images.announce),  # those whose telling failed when they became visible
            "pruning": (_HOUR_S, lambda: _prune(features)),
        }
        return [Ticker(name, pause, work, metrics.tick_failed) for name, (pause, work) in every.items()]

    def _announce(self, features: Features) -> None:
        token = self._admin_token(features)
        self.folder.write(self.folder.admin_token, token.encode(), mode=0o600)
        address = ServerAddress(url=self._url, broker=self.broker, pid=os.getpid())
        self.folder.write(self.folder.address, msgspec.json.encode(address), mode=0o644)
        self._stack.append(("address", lambda: self.folder.address.unlink(missing_ok=True)))
        _log.info("the broker listens on %s", self.broker)
        _log.info("ready; open the console, once, with %s/login?token=%s", self._url, features.access.create_login())

    def _admin_token(self, features: Features) -> str:
        try:
            token = self.folder.admin_token.read_text().strip()
        except FileNotFoundError:
            token = ""
        if token and features.access.verify(token) is Role.ADMIN:
            return token
        return features.access.replace_token(Role.ADMIN, "admin.token of the data folder")


def build(config: ServerConfig) -> Server:
    """A server that has yet to be started."""
    return Server(config)


def _receive(features: Features, messages: Sequence[Received]) -> None:
    features.receiver.receive(messages)
    for message in messages:
        try:
            topics, rest = parse(message.topic)
        except MessageError:
            continue  # set aside by the receiver, with its reason
        # A status may be a last will: the broker's word, long after the device's own.
        if not message.retained and rest != "status":
            features.devices.seen(topics.device)


def _connected(features: Features) -> None:
    features.devices.broker_connected()
    features.receiver.announce()


def _prune(features: Features) -> None:
    now = now_ms()
    features.access.prune(now)
    features.devices.prune(now)
    features.monitoring.prune(now)
    features.runs.prune()
