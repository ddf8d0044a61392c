"""The console of a :class:`Harbour` on a real port, for a real browser."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn

from edge_agent.contract.enrolment import BrokerAddress
from fleet_server.access import routes as access
from fleet_server.access.guard import Guard
from tests.fleet_server.console.harbour import Harbour


@contextlib.contextmanager
def served(harbour: Harbour, port: int = 0) -> Iterator[str]:
    """Gives the server's address; it ends with the block."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        broker = BrokerAddress(host="127.0.0.1", port=1)
        guard = Guard(harbour.access)
        harbour.app.include_router(access.routes(harbour.access, guard, addresses=lambda _: (address, broker)))
        server = uvicorn.Server(uvicorn.Config(harbour.app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield address
        finally:
            server.should_exit = True
            thread.join(timeout=30)
