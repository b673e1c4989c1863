"""The sandbox on a port."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from criteo_provider.sandbox.app import create_app
from criteo_provider.sandbox.desk import ABORT
from criteo_provider.sandbox.state import World

HOST = "127.0.0.1"
KEEP_ALIVE_S = 75


def listening_socket(port: int = 0) -> socket.socket:
    """Return a socket listening on ``port`` of this machine (0: a free one); raises ``OSError`` if taken."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
    except OSError:
        sock.close()
        raise
    sock.listen(1024)
    return sock


class _Announced(uvicorn.Server):
    """Says that it is there once it takes requests and, as important, signals."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()


def server_for(world: World, announce: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """Return a uvicorn server of ``world``; run it with ``server.run(sockets=[...])``."""
    config = uvicorn.Config(
        _abortable(create_app(world)),
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    return _Announced(config, announce)


def serve(
    port: int = 8780,
    world: World | None = None,
    *,
    until_stdin_closes: bool = False,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve ``world`` (default: the example world) until interrupted; ``ready`` is told where in a sentence.

    ``until_stdin_closes`` ends the server with the process that started it, however that one died.
    """
    sock = listening_socket(port)
    said = f"The sandbox Criteo listens on http://{HOST}:{sock.getsockname()[1]}"
    server = server_for(world or World.example(), lambda: ready(said))
    if until_stdin_closes:
        threading.Thread(target=_stop_at_eof, args=(server,), daemon=True).start()
    try:
        asyncio.run(server.serve(sockets=[sock]))
    except KeyboardInterrupt:
        return
    finally:
        sock.close()


def _stop_at_eof(server: uvicorn.Server) -> None:
    while sys.stdin.buffer.read(4096):
        continue
    server.should_exit = True


def _abortable(app: ASGIApp) -> ASGIApp:
    """Offer the application a function that cuts the connection under it, which ASGI itself does not."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        transport = getattr(getattr(send, "__self__", None), "transport", None)
        if transport is not None:
            scope[ABORT] = transport.abort
        await app(scope, receive, send)

    return wrapped
