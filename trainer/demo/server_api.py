"""The fleet server's REST API as the demo uses it: as any administrator's script would."""

from __future__ import annotations

from typing import Any

import httpx

from trainer.demo.processes import DemoFailed


class ServerApi:
    """Requests with a bearer token; an answer other than 2xx ends the demo with the server's own words."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30.0)

    def get(self, path: str, **query: Any) -> Any:
        """GET ``/api/v1/{path}``, decoded."""
        return self._ask("GET", path, params=query)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST ``/api/v1/{path}``, decoded."""
        return self._ask("POST", path, json=body)

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            reply = self._client.request(method, f"/api/v1/{path}", **options)
        except httpx.HTTPError as error:
            raise DemoFailed(f"{method} {self.url}/api/v1/{path}: {type(error).__name__}: {error}") from error
        if reply.is_error:
            raise DemoFailed(f"{reply.request.method} {reply.request.url}: {reply.status_code}: {reply.text}")
        return reply.json() if reply.content else None
