"""The server's own branch of the error tree: a request over REST that cannot be granted.

::

    CallerError (edge_agent.contract.errors)
    |- NotAuthenticated        no token, or one that is not known, expired or revoked: 401
    |- Forbidden               a token of too low a role: 403
    |- NotFound                no such device, package, rollout, ...: 404
    `- Conflict                the state of things does not allow it now: 409
"""

from __future__ import annotations

from edge_agent.contract.errors import CallerError


class NotAuthenticated(CallerError):
    """The request carries no token, or one that is not valid (any more)."""

    http_status = 401


class Forbidden(CallerError):
    """The token is valid, but its role is too low."""

    http_status = 403


class NotFound(CallerError):
    """The thing that the request names does not exist."""

    http_status = 404


class Conflict(CallerError):
    """The state of things does not allow it now."""

    http_status = 409
