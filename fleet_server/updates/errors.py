"""What may be wrong with an upload."""

from __future__ import annotations

from edge_agent.contract.errors import CallerError


class UploadRefused(CallerError):
    """Uploaded metadata or files that the repository's keys do not vouch for, or that go back in time."""

    http_status = 422
