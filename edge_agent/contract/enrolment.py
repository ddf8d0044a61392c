"""How a device joins a fleet: a one-time claim token for an identity, over the server's REST API (JSON)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge_agent.contract.messages import Hardware


class EnrolmentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``POST /api/v1/enrol``.

    Args:
        claim: One-time claim token, as ``shoal devices claim`` prints it.
        device: Name that the device asks for; the token may be bound to one.
    """

    claim: str
    device: str
    hardware: Hardware


class EnrolmentRoots(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``GET /api/v1/enrol/roots``, which anybody may ask: a device holds its pins against it first.

    A claim that was sent is spent. One that is not sent because the roots are others can still be used.

    Args:
        image_root, director_root: As in :class:`Enrolment`.
    """

    image_root: str
    director_root: str


Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]


class BrokerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where the MQTT broker listens."""

    host: str
    port: Port


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: who the device is from now on. Kept on the device with mode 0600.

    Args:
        secret: Password at the broker (user name: the device) and bearer token at the server's HTTP.
        server: Base URL of the fleet server.
        image_root, director_root: TUF root metadata (JSON) of the two repositories, the device's trust anchors.
    """

    fleet: str
    device: str
    secret: str
    server: str
    broker: BrokerAddress
    image_root: str
    director_root: str
