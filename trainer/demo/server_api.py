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
        return self._answer(self._client.get(f"/api/v1/{path}", params=query))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST ``/api/v1/{path}``, decoded."""
        return self._answer(self._client.post(f"/api/v1/{path}", json=body))

    def put(self, path: str, body: dict[str, Any]) -> Any:
        """PUT ``/api/v1/{path}``, decoded."""
        return self._answer(self._client.put(f"/api/v1/{path}", json=body))

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    @staticmethod
    def _answer(reply: httpx.Response) -> Any:
        if reply.is_error:
            raise DemoFailed(f"{reply.request.method} {reply.request.url}: {reply.status_code}: {reply.text}")
        return reply.json() if reply.content else None
