"""A client of the service in this process: requests without a network."""

import asyncio
import json
from typing import Any

import httpx


class Client:
    """An HTTP client of an application in this process; `post` and `get` return (status, body)."""

    def __init__(self, app: Any, token: str | None = None) -> None:
        authorization = {} if token is None else {"authorization": f"Bearer {token}"}
        self.headers = {"content-type": "application/json", **authorization}
        self._transport = httpx.ASGITransport(app)

    def send(self, *requests: tuple[str, str, Any]) -> list[httpx.Response]:
        async def together() -> list[httpx.Response]:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://twofold") as client:
                pending = [
                    client.request(
                        method,
                        path,
                        headers=self.headers,
                        content=body if isinstance(body, bytes) else json.dumps(body),
                    )
                    for method, path, body in requests
                ]
                return await asyncio.gather(*pending)

        return asyncio.run(together())

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        (reply,) = self.send(("POST", path, body))
        return reply.status_code, reply.json()

    def delete(self, path: str) -> tuple[int, Any]:
        (reply,) = self.send(("DELETE", path, b""))
        return reply.status_code, reply.json()

    def get(self, path: str) -> tuple[int, Any]:
        (reply,) = self.send(("GET", path, b""))
        return reply.status_code, reply.json()
