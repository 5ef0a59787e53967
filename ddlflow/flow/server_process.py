"""The program of the shared Prefect server: ``python -m ddlflow.flow.server_process``.

It serves on a socket that it is given, and ends by itself once no command has used it and nobody
has asked it for anything for a while. `ddlflow.flow.server` starts it.
"""

import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddlflow.flow.server import locked, num_users

_LOOK_S = 0.5
_END_S = 3  # for requests that are under way

App = Callable[[Any, Any, Any], Awaitable[None]]


class Asked:
    """An ASGI application that knows when it was last asked for something."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.at = time.monotonic()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.at = time.monotonic()
        await self._app(scope, receive, send)


def end_when_idle(folder: Path, idle_s: float, asked: Asked, end: Callable[[], None]) -> None:
    """Calls ``end`` once nobody has used the server for some seconds."""
    used_at = time.monotonic()
    while True:
        time.sleep(_LOOK_S)
        if num_users(folder):
            used_at = time.monotonic()
        # The pages in a browser ask now and again; a server that ends with its commands ends
        # under an open page as well.
        last = max(used_at, asked.at) if idle_s else used_at
        if time.monotonic() - last < idle_s or not folder.exists():
            if folder.exists():
                continue
            break
        with locked(folder):  # no command finds it between the look and the end
            if num_users(folder):
                continue
            (folder / "server.json").unlink(missing_ok=True)
        break
    end()


def main() -> None:
    number, folder, idle_s = sys.argv[1:]
    listener = socket.socket(fileno=int(number))
    listener.set_inheritable(False)
    import uvicorn
    from prefect.server.api.server import create_app

    asked = Asked(create_app(final=True))
    config = uvicorn.Config(
        asked, log_level="error", lifespan="on", timeout_graceful_shutdown=_END_S
    )
    server = uvicorn.Server(config)

    def end() -> None:
        server.should_exit = True

    watch = (Path(folder), float(idle_s), asked, end)
    threading.Thread(target=end_when_idle, args=watch, daemon=True).start()
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()
