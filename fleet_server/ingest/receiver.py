"""What comes from the broker goes where it belongs: streams to ingest, twin and status to the devices."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from edge_agent.contract.envelope import decode, encode
from edge_agent.contract.errors import MessageError
from edge_agent.contract.messages import Reported, Status
from edge_agent.contract.topics import DeviceTopics, parse
from fleet_server.ingest.service import IngestService
from fleet_server.mqtt import Received

_log = logging.getLogger(__name__)


class Receiver:
    """The server's ear.

    Args:
        publish: Sends (topic, payload, retain) to the broker.
        on_reported, on_status: Told what a device is, and whether it is connected.
        accepts: Whether a device may still speak.
    """

    def __init__(
        self,
        fleet: str,
        ingest: IngestService,
        *,
        publish: Callable[[str, bytes, bool], None],
        on_reported: Callable[[str, Reported], None],
        on_status: Callable[[str, Status], None],
        accepts: Callable[[str], bool] | None = None,
    ) -> None:
        self._fleet, self._ingest, self._publish = fleet, ingest, publish
        self._on_reported, self._on_status = on_reported, on_status
        self._accepts = accepts or bool

    def receive(self, messages: Sequence[Received]) -> None:
        """Take a batch; acknowledge it to the devices once it is committed.

        Raises:
            sqlalchemy.exc.DBAPIError: The database fails; give the same batch again.
        """
        up = [(message.topic, message.payload) for message in messages if "/up/" in message.topic]
        for topics, ack in self._ingest.take_all(up) if up else ():
            self._publish(topics.ack, encode(ack), False)  # noqa: FBT003, RUF100
        for message in messages:
            # An empty retained message is how MQTT deletes one.
            if "/up/" not in message.topic and message.payload:
                self._take_twin(message)

    def announce(self) -> None:
        """Tell every device how far the server has come; one that has more under way sends it again at once."""
        for device, ack in self._ingest.positions():
            self._publish(DeviceTopics(self._fleet, device).ack, encode(ack), False)  # noqa: FBT003, RUF100

    def _take_twin(self, message: Received) -> None:
        try:
            topics, rest = parse(message.topic)
            if not self._accepts(topics.device):
                return
            if rest == "twin/reported":
                self._on_reported(topics.device, decode(message.payload, Reported))
            elif rest == "status":
                self._on_status(topics.device, decode(message.payload, Status))
        except MessageError as error:
            self._ingest.put_aside(message.topic, message.payload, str(error))
        except (sa.exc.OperationalError, sa.exc.InterfaceError):
            raise  # the database fails, not the message: all is tried again
        except Exception as error:  # noqa: BLE001  one device's message must not cost the others theirs, or be tried for ever
            _log.warning("%s: set aside", message.topic, exc_info=error)
            self._ingest.put_aside(message.topic, message.payload, f"{type(error).__name__}: {error}")
