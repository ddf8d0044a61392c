"""amqtt's broker, with what it lacks for a fleet in which a device may be hostile.

Found in amqtt 0.12.1 (the overridden methods are internal: check them again with each new version):

- It changes or deletes a client's session *before* it checks the password: anybody can end anybody's connection, or
  write another user name into a live session. Here the password comes first, and a client's identifier is its user.
- A last will may name any topic. Here it is checked like a publication.
- On each connection it sends the retained messages that match *any* client's subscription. Here: only one's own.
- A client that connects while its old connection lingers ends up in state "disconnected" and hears nothing more; one
  that vanishes during the handshake is never noticed. Here the old connection is seen to its end first.
- The keep-alive is not enforced: a half-open connection lives on and its will is never sent. Here 1.5 times the
  keep-alive ends it (MQTT 3.1.1, 3.1.2.10).
- A packet may have 256 MB and a CONNECT may take for ever. Here: :data:`MAX_PACKET_BYTES`, :data:`CONNECT_S`.
- A subscription that comes while a message is delivered breaks that delivery (a dict changes while iterated).
- A client that vanishes right after its SUBSCRIBE has that handled when its session is gone already; who connects next
  under its name is then taken for subscribed, and hears nothing. Here only a session that stands can subscribe.
- What is published to a connection that has ended waits 5 s for an acknowledgement, and with it the client's next
  connection. Here it fails at once.
- A message that a client has not acknowledged within 5 s is forgotten. Nothing to mend: only the server's own
  acknowledgement lets a device forget (see :mod:`edge_agent.link.window`).
- Queues of offline sessions have no limit. Here sessions end with their connection (CONNACK says "session present: 0"):
  the desired state is retained, everything else is in an outbox.

128 KB messages pass; retained messages live in memory, as long as the broker runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from amqtt.adapters import ReaderAdapter, StreamReaderAdapter, WriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.errors import AMQTTError, MQTTError, NoDataError
from amqtt.mqtt.connack import NOT_AUTHORIZED, ConnackPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.protocol.handler import ProtocolHandler
from amqtt.mqtt.publish import PublishPacket
from amqtt.session import OutgoingApplicationMessage, Session

from edge_agent.contract.envelope import MAX_PAYLOAD_BYTES
from fleet_server.broker.rules import TopicRules

_log = logging.getLogger(__name__)

MAX_PACKET_BYTES = 2 * MAX_PAYLOAD_BYTES  # the server's own desired state may be larger than what devices send
CONNECT_S = 10.0
_TAKE_OVER_S = 5.0
_LISTENER = "default"
_REFUSED = 0x80  # MQTT 3.1.1, 3.9.3: what SUBACK says of a subscription that failed

Authenticate = Callable[[str, str], Awaitable[bool]]


class FleetBroker(Broker):  # type: ignore[misc]  # amqtt ships no types
    """A broker on connections that somebody else accepts (:meth:`serve`).

    Args:
        authenticate: Whether user and password are right.
        rules: Who may do what.
    """

    def __init__(self, authenticate: Authenticate, rules: TopicRules) -> None:
        super().__init__({"listeners": {_LISTENER: {"type": "external"}}, "plugins": {}})
        self._check_password, self._rules = authenticate, rules
        self._subscriptions = _Snapshots()

    async def serve(self, reader: asyncio.StreamReader, writer: WriterAdapter) -> None:
        """Handle one connection until it ends."""
        await self.external_connected(_BoundedReader(reader), writer, _LISTENER)

    def forget(self, client_id: str) -> None:
        """End the connection of a client, for instance of a device that was revoked."""
        _, handler = self._sessions.get(client_id, (None, None))
        if handler is not None:
            handler.end()

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, remote_address: str, remote_port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        del remote_address, remote_port
        try:
            connect = _Handler.init_from_connect(reader, writer, self.plugins_manager, loop=self._loop)
            handler, session = await asyncio.wait_for(connect, CONNECT_S)
        except (AMQTTError, MQTTError, NoDataError, TimeoutError) as error:
            await writer.close()
            raise AMQTTError(f"no CONNECT: {error!r}") from error
        if not await self._is_allowed(session):
            _log.info("refused user %r as client %r", session.username, session.client_id)
            await ConnackPacket.build(0, NOT_AUTHORIZED).to_stream(writer)
            await writer.close()
            raise AMQTTError(f"user {session.username!r} refused")
        await self._take_over(session.client_id)
        session.clean_session, session.parent = True, 0
        session.keep_alive = (session.keep_alive * 3 + 1) // 2
        return handler, session

    async def _is_allowed(self, session: Session) -> bool:
        user = session.username
        if not user or not await self._check_password(user, session.password or ""):
            return False
        if session.will_flag and not self._rules.may_publish(user, session.will_topic):
            return False
        return user in {self._rules.server, str(session.client_id)}

    async def _take_over(self, client_id: str) -> None:
        """End the old connection of a client and wait until its will is out and its session gone."""
        self.forget(client_id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TAKE_OVER_S):
                while client_id in self._sessions:  # noqa: ASYNC110  amqtt tells nobody when it is gone
                    await asyncio.sleep(0.005)
        await self._delete_session(client_id)

    async def add_subscription(self, subscription: tuple[str, int], session: Session) -> int:
        """Subscribe a session; gives the quality of service, or :data:`_REFUSED`."""
        if not self._stands(session):
            return _REFUSED
        granted: int = await super().add_subscription(subscription, session)
        return granted

    def _stands(self, session: Session) -> bool:
        return self._sessions.get(session.client_id, (None, None))[0] is session

    def _del_subscription(self, a_filter: str, session: Session) -> int:
        # The base goes by the client's name here, too: the end of an old connection would make the new one deaf.
        found = self._subscriptions.get(a_filter, [])
        for index, (own, _) in enumerate(found):
            if own is session:
                del found[index]
                return 1
        return 0

    def _get_handler(self, session: Session) -> BrokerProtocolHandler | None:
        # The base goes by the client's name, which may have a newer session.
        return super()._get_handler(session) if self._stands(session) else None

    async def _authenticate(self, session: Session, listener: Any) -> bool:
        del session, listener
        return True  # _initialize_client_session has done it, before anything was changed

    async def _topic_filtering(self, session: Session, topic: str, action: Action) -> bool:
        user = session.username or ""
        if action == Action.PUBLISH:
            return self._rules.may_publish(user, topic)
        # What is received was allowed when it was subscribed to.
        return action == Action.RECEIVE or self._rules.may_subscribe(user, topic)

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        if any(own is session for own, _ in self._subscriptions.get(subscription[0], ())):
            await super()._publish_retained_messages_for_subscription(subscription, session)

    async def _handle_disconnect(
        self, client_session: Session, handler: BrokerProtocolHandler, disconnect_waiter: asyncio.Future[Any]
    ) -> None:
        await super()._handle_disconnect(client_session, handler, disconnect_waiter)
        if self._stands(client_session):
            await self._delete_session(client_session.client_id)


class _Handler(BrokerProtocolHandler):  # type: ignore[misc]  # amqtt ships no types
    """One connection, whose end is never overlooked."""

    _disconnect_waiter: asyncio.Future[Any] | None
    _has_ended = False

    async def start(self) -> None:
        # The base makes the waiter last: an end before that would go unseen.
        self._disconnect_waiter = asyncio.get_running_loop().create_future()
        await ProtocolHandler.start(self)

    async def stop(self) -> None:
        self._has_ended = True  # before those who wait for acknowledgements are woken: none may come after them
        await super().stop()

    async def mqtt_publish(self, *args: Any, **options: Any) -> OutgoingApplicationMessage:
        """Send a message and wait for its acknowledgement.

        Raises:
            AMQTTError: The connection has ended.
        """
        if self._has_ended:
            raise AMQTTError("the connection has ended")
        return await super().mqtt_publish(*args, **options)

    async def _send_packet(self, packet: Any) -> None:
        await super()._send_packet(packet)
        # While it was sent: the base would wait for an acknowledgement now.
        if self._has_ended and isinstance(packet, PublishPacket):
            raise AMQTTError("the connection has ended")

    def handle_read_timeout(self) -> None:
        self.end()

    def end(self) -> None:
        """Act as if the connection had broken."""
        waiter, self._disconnect_waiter = self._disconnect_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class _BoundedReader(StreamReaderAdapter):  # type: ignore[misc]  # amqtt ships no types
    """Refuses a packet before memory is taken for it."""

    async def read(self, n: int = -1) -> bytes:
        if n > MAX_PACKET_BYTES:
            raise AMQTTError(f"a packet of {n} bytes; at most {MAX_PACKET_BYTES} are taken")
        data: bytes = await super().read(n)
        return data


class _Snapshots(dict[str, list[tuple[Session, int]]]):
    """A dict whose iterators do not break when it changes meanwhile."""

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().keys()))

    def items(self) -> Any:
        """The pairs as of now."""
        return [(pattern, list(found)) for pattern, found in super().items()]
